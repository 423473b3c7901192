"""Redis and Valkey, sync and async: commands and pipelines, the opening of connections, waits for a pool that is full.

redis-py and valkey-py are of one origin: the same classes under two names.
"""

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from timesplit.instrumentation.calls import (
    ANY_NAMED,
    Call,
    Sync,
    awaited,
    blocking,
    charged,
    hook,
    labelled,
    working,
)
from timesplit.instrumentation.ledger import OTHER_WAIT
from timesplit.instrumentation.readiness import SOCKETS
from timesplit.parts import CODES

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent

_CACHE = CODES["cache"]
_LONGEST = 24  # characters of a command's name; what is longer is none


@lru_cache(maxsize=1024)
def command_name(name: str | bytes) -> str:
    """Return the name of a command, without what was given with it."""
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    words = text.split(None, 1)
    word = words[0].upper() if words else ""
    return word if len(word) <= _LONGEST and word.replace(".", "").isalnum() else "command"


def _about_command(request: Any, client: Any, name: str | bytes, *_: Any, **__: Any) -> str:
    return command_name(name)


COMMAND = Call(_CACHE, _about_command, ANY_NAMED)
PIPELINE = Call(_CACHE, labelled("PIPELINE"), ANY_NAMED)
# These are inside a command, and are something else than that.
CONNECT = Call(_CACHE, labelled("connect"), frozenset())
POOL = Call(OTHER_WAIT, labelled("cache pool"), frozenset())
MESSAGES = Call(OTHER_WAIT, labelled("pubsub"), ANY_NAMED)


def arm_redis(agent: "Agent") -> None:
    """Arm redis-py."""
    _arm(agent, "redis", "Redis")


def arm_valkey(agent: "Agent") -> None:
    """Arm valkey-py."""
    _arm(agent, "valkey", "Valkey")


def _arm(agent: "Agent", package: str, client: str) -> None:
    for folder, way in ((package, blocking), (f"{package}.asyncio", awaited)):
        handshake = _handshake(f"{folder}.connection")
        for owner, method, call in (
            (f"client:{client}", "execute_command", COMMAND),
            ("client:Pipeline", "immediate_execute_command", COMMAND),
            ("client:Pipeline", "execute", PIPELINE),
            ("client:PubSub", "parse_response", MESSAGES),
            (f"cluster:{client}Cluster", "execute_command", COMMAND),
            ("cluster:ClusterPipeline", "execute", PIPELINE),
            ("connection:BlockingConnectionPool", "get_connection", POOL),
            ("connection:AbstractConnection", handshake, CONNECT),
            ("connection:Connection", "_connect", CONNECT),
            ("connection:UnixDomainSocketConnection", "_connect", CONNECT),
        ):
            hook(agent, f"{folder}.{owner}", method, charged(way, call))
    hook(agent, f"{package}.asyncio.connection:AbstractConnection", "read_response", _noting_connection)
    connection = getattr(sys.modules.get(f"{package}.asyncio.connection"), "AbstractConnection", None)
    if connection is not None:
        SOCKETS[connection] = lambda connection: connection._writer.get_extra_info("socket")


def _handshake(module: str) -> str:
    base = getattr(sys.modules.get(module), "AbstractConnection", None)
    return "on_connect_check_health" if hasattr(base, "on_connect_check_health") else "on_connect"


def _noting_connection(original: Sync) -> Sync:
    # Not `async`: a frame less in each of the request's steps.
    def read_response(connection: Any, *args: Any, **kwargs: Any) -> Any:
        worker = working()
        if worker is not None:
            worker.source = connection  # until the command that reads is over
        return original(connection, *args, **kwargs)

    return read_response
