"""PostgreSQL's drivers and their pools: asyncpg, and psycopg 3 with psycopg_pool."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from timesplit.instrumentation.calls import (
    About,
    Async,
    Call,
    Sync,
    awaited,
    blocking,
    charged,
    connected,
    enter,
    hook,
    labelled,
    leave,
)
from timesplit.instrumentation.database import CLOSE, CONNECT, NAMED, PING, POOL, counted
from timesplit.instrumentation.ledger import OTHER_WAIT
from timesplit.instrumentation.readiness import SOCKETS
from timesplit.instrumentation.statements import label_of
from timesplit.parts import CODES

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent

_QUERY = CODES["query"]


# asyncpg: every round trip is a method of its protocol, whatever asked for it.


def _about_text(request: Any, protocol: Any, text: str, *_: Any, **__: Any) -> str:
    return counted(request, text)


def _about_prepare(request: Any, protocol: Any, name: str, text: str, *_: Any, **__: Any) -> str:
    return label_of(text)


def _about_state(request: Any, protocol: Any, state: Any, *_: Any, **__: Any) -> str:
    return counted(request, state.query)


def _about_open(request: Any, protocol: Any, state: Any, *_: Any, **__: Any) -> str:
    return label_of(state.query)


_RESET = Call(_QUERY, labelled("reset"), NAMED)
_PROTOCOL: dict[str, About] = {
    "query": _about_text,
    "prepare": _about_prepare,
    "bind_execute": _about_state,
    "bind_execute_many": _about_state,
    "bind": _about_state,  # opens a cursor …
    "execute": _about_open,  # … and fetches from it
    "copy_in": _about_text,
    "copy_out": _about_text,
    "close_statement": labelled("DEALLOCATE"),
    "close_portal": labelled("CLOSE"),
}


def arm_asyncpg(agent: "Agent") -> None:
    """Arm asyncpg's connections and its pool."""
    protocol = "asyncpg.protocol:Protocol"
    for method, about in _PROTOCOL.items():
        hook(agent, protocol, method, charged(connected, Call(_QUERY, about, NAMED)))
    hook(agent, protocol, "close", charged(awaited, CLOSE))
    hook(agent, protocol, "connection_made", _noting_socket)
    hook(agent, "asyncpg.connect_utils", "_connect", charged(awaited, CONNECT))
    hook(agent, "asyncpg.connection:Connection", "reset", charged(awaited, _RESET))
    hook(agent, "asyncpg.pool:Pool", "_acquire", charged(awaited, POOL))
    SOCKETS[sys.modules["asyncpg.protocol"].Protocol] = lambda protocol: protocol._timesplit_socket


def _noting_socket(original: Sync) -> Sync:
    def connection_made(self: Any, transport: Any) -> Any:
        with suppress(Exception):  # of a transport of another kind
            # The socket, not the transport: that and its protocol would keep each other alive.
            self._timesplit_socket = transport.get_extra_info("socket")
        return original(self, transport)

    return connection_made


# psycopg: every round trip is a generator that the connection waits for; its name and arguments tell what it does.

_STATEMENTS = {
    "_execute_gen": "query",
    "_executemany_gen_pipeline": "query",
    "_executemany_gen_no_pipeline": "query",
    "_stream_send_gen": "query",
    "_declare_gen": "query",
    "_start_copy_gen": "statement",
}
_OTHERS = {
    "_commit_gen": "COMMIT",
    "_rollback_gen": "ROLLBACK",
    "_enter_gen": "BEGIN",
    "_exit_gen": "END",
    "_fetch_gen": "FETCH",
    "_stream_fetchone_gen": "FETCH",
    "_scroll_gen": "MOVE",
    "_close_gen": "CLOSE",
}


def _about_generator(request: Any, connection: Any, generator: Any, *_: Any, **__: Any) -> str:
    name = getattr(generator, "__name__", "")
    argument = _STATEMENTS.get(name)
    if argument is None:
        return _OTHERS.get(name, "")
    statement = generator.gi_frame.f_locals[argument]
    if isinstance(statement, bytes):
        statement = statement.decode("utf-8", "replace")
    elif not isinstance(statement, str):
        statement = statement.as_string(None) if hasattr(statement, "as_string") else ""
    return counted(request, statement)


_ROUND_TRIP = Call(_QUERY, _about_generator, NAMED)
_NOTIFIED = Call(OTHER_WAIT, labelled("notifies"), NAMED)


def arm_psycopg(agent: "Agent") -> None:
    """Arm psycopg's connections."""
    package: Any = sys.modules["psycopg"]
    for owner, wait, way in (
        ("psycopg:Connection", _blocking_wait, blocking),
        ("psycopg:AsyncConnection", _async_wait, awaited),
    ):
        hook(agent, owner, "wait", wait)
        hook(agent, owner, "connect", _opening(way))
    # The package's function is the method, bound before that was replaced.
    hook(agent, "psycopg", "connect", lambda _: package.Connection.connect)
    SOCKETS[package.AsyncConnection] = lambda connection: connection.pgconn.socket


def arm_psycopg_pool(agent: "Agent") -> None:
    """Arm psycopg's pools."""
    for owner, way in (("ConnectionPool", blocking), ("AsyncConnectionPool", awaited)):
        hook(agent, f"psycopg_pool:{owner}", "getconn", charged(way, POOL))
        hook(agent, f"psycopg_pool:{owner}", "_check_connection", charged(way, PING))


def _async_wait(original: Async) -> Async:
    waited = connected(original, _ROUND_TRIP)
    notified = connected(original, _NOTIFIED)

    # Not `async`: a frame less in each of the request's steps.
    def wait(connection: Any, generator: Any, *args: Any, **kwargs: Any) -> Any:
        way = notified if getattr(generator, "__name__", "") == "notifies" else waited
        return way(connection, generator, *args, **kwargs)

    return wait


def _blocking_wait(original: Sync) -> Sync:
    def wait(connection: Any, generator: Any, *args: Any, **kwargs: Any) -> Any:
        listens = getattr(generator, "__name__", "") == "notifies"
        before = enter(_NOTIFIED if listens else _ROUND_TRIP, (connection, generator))
        try:
            return original(connection, generator, *args, **kwargs)
        finally:
            if before is not None:
                leave(before)

    return wait


def _opening(way: Any) -> Any:
    """Return what makes a class method's stand-in; subclasses inherit it."""
    return lambda bound: classmethod(way(bound.__func__, CONNECT))
