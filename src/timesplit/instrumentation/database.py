"""SQLAlchemy: waits for its pool, connections that it opens and pings, and its statements, sync and async alike.

Its async layer runs the sync code in a greenlet: while a driver is awaited the strand is suspended inside the call of
the dialect that is charged here. What drivers do below is named by these calls and not counted twice.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from timesplit.instrumentation.calls import Call, blocking, charged, hook, labelled
from timesplit.instrumentation.statements import is_counted, label_of
from timesplit.parts import CODES

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent

_POOL_WAIT, _CONNECT, _QUERY = (CODES[name] for name in ("pool_wait", "db_connect", "query"))
# A database's calls inside these are pieces of them: the statement of a ping, a driver's calls below SQLAlchemy.
NAMED = frozenset((_CONNECT, _QUERY))

CONNECT = Call(_CONNECT, labelled("connect"), NAMED)
CLOSE = Call(_CONNECT, labelled("close"), NAMED)
PING = Call(_CONNECT, labelled("ping"), NAMED)
POOL = Call(_POOL_WAIT, labelled(""), NAMED | {_POOL_WAIT})
COMMIT = Call(_QUERY, labelled("COMMIT"), NAMED)
ROLLBACK = Call(_QUERY, labelled("ROLLBACK"), NAMED)


def counted(request: Any, statement: str) -> str:
    """Count a statement, unless it only opens or closes a transaction, and return its label."""
    label = label_of(statement)
    if is_counted(label):
        request.query_count += 1
    return label


def _about_cursor(request: Any, dialect: Any, cursor: Any, statement: str, *_: Any, **__: Any) -> str:
    return counted(request, statement)


_STATEMENT = Call(_QUERY, _about_cursor, NAMED)
_DIALECT = {
    "do_execute": _STATEMENT,
    "do_execute_no_params": _STATEMENT,
    "do_executemany": _STATEMENT,
    "do_commit": COMMIT,
    "do_rollback": ROLLBACK,
    "_do_ping_w_event": PING,
}
# Dialects with such a method of their own, in modules that an engine of theirs imports.
DIALECTS = tuple(
    f"sqlalchemy.dialects.{module}"
    for module in ("mssql.pyodbc", "mysql.mysqldb", "oracle.cx_oracle", "postgresql.psycopg2")
)


def arm_dialects(agent: "Agent") -> None:
    """Arm the methods by which dialects call their drivers, also where a dialect has a method of its own."""
    base: Any = sys.modules["sqlalchemy.engine.default"]
    for owner in _family(base.DefaultDialect):
        for method, call in _DIALECT.items():
            if method in vars(owner):
                hook(agent, f"{owner.__module__}:{owner.__name__}", method, charged(blocking, call))


def arm_pool(agent: "Agent") -> None:
    """Arm the pools' queues, and the opening of connections."""
    hook(agent, "sqlalchemy.pool.impl:QueuePool", "_do_get", charged(blocking, POOL))
    # Private to its class, so Python has put the class's name before it.
    connect = "_ConnectionRecord__connect"
    hook(agent, "sqlalchemy.pool.base:_ConnectionRecord", connect, charged(blocking, CONNECT))


def _family(owner: Any) -> Iterator[Any]:
    yield owner
    for child in owner.__subclasses__():
        yield from _family(child)
