"""Calls of other HTTP services: httpx (by httpcore, which it calls), requests (by urllib3), and aiohttp.

A call lasts until its body has been read, as far as the application reads it. Waiting for a connection of the client's
pool, and opening one, is `upstream_wait`. Each call carries the request's trace on, unless it carries one already.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from timesplit.instrumentation.calls import (
    ANY_NAMED,
    Async,
    Call,
    Sync,
    Way,
    awaited,
    blocking,
    charged,
    connected,
    enter,
    failed,
    hook,
    labelled,
    leave,
    working,
)
from timesplit.instrumentation.layout import span_id
from timesplit.instrumentation.ledger import Strand
from timesplit.instrumentation.readiness import SOCKETS
from timesplit.parts import CODES

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent


_WAIT, _CALL = CODES["upstream_wait"], CODES["upstream"]
_LABEL = "_timesplit_label"  # attribute of what a call's body is read from: the call's label
_TRACE, _FLAGS = slice(0, 35), slice(52, None)  # of a traceparent: 00-<32 digits>-<16>-<2>
_TRACEPARENT_LENGTH = 55
_NAME_LENGTH = len(b"traceparent")

# Inside a call these are something else than that.
POOL = Call(_WAIT, labelled("pool"), frozenset((_WAIT,)))
CONNECT = Call(_WAIT, labelled("connect"), frozenset())
BODY = Call(_CALL, lambda _, source, *__, **___: getattr(source, _LABEL, ""), ANY_NAMED)


def traceparent(request: Any) -> str | None:
    """Return the header that makes a call a child of the request's server span; None where it has no trace."""
    if request.foreign is not None:
        span = request.foreign.get_span_context()
        flags = int(span.trace_flags) & 1
        return f"00-{span.trace_id:032x}-{span.span_id:016x}-{flags:02x}" if span.is_valid else None
    parent: str = request.traceparent.decode("ascii")
    if len(parent) != _TRACEPARENT_LENGTH:
        return None
    return f"{parent[_TRACE]}-{span_id(request.journal.instance, request.number):016x}{parent[_FLAGS]}"


@lru_cache(maxsize=1024)
def _label(method: str | bytes, host: str | bytes, port: int | None) -> str:
    words = [word.decode("ascii") if isinstance(word, bytes) else word for word in (method, host)]
    return " ".join(words) if port is None else f"{words[0]} {words[1]}:{port}"


def _reading(original: Any, way: Way) -> Any:
    """Return what reads for calls: their heads, and the bodies after them."""
    reading = way(original, BODY)

    # Not `async`: a frame less in each of the request's steps.
    def read(source: Any, *args: Any, **kwargs: Any) -> Any:
        worker = working()
        if worker is not None and worker.part == _CALL:
            _remember(source, worker)
        return reading(source, *args, **kwargs)

    return read


def _remember(source: Any, worker: Strand) -> None:
    """Keep a call's label where its body is read from."""
    with suppress(AttributeError):  # of a class with slots: the body has no label then
        setattr(source, _LABEL, worker.label)


# httpcore


def _about_httpcore(request: Any, pool: Any, called: Any, *_: Any, **__: Any) -> str:
    request.upstream_count += 1
    for name, _value in called.headers:
        if len(name) == _NAME_LENGTH and name.lower() == b"traceparent":
            break
    else:
        parent = traceparent(request)
        if parent is not None:
            # A list of the call's own: the client's request is not changed.
            called.headers = [*called.headers, (b"traceparent", parent.encode("ascii"))]
    return _label(called.method, called.url.host, called.url.port)


_HTTPCORE = Call(_CALL, _about_httpcore, ANY_NAMED)


def arm_httpcore(agent: "Agent") -> None:
    """Arm httpcore's pools, the connections that they open, and the streams that these read from."""
    for folder, prefix, way, method in (
        ("httpcore._async", "Async", awaited, "handle_async_request"),
        ("httpcore._sync", "", blocking, "handle_request"),
    ):
        pools = f"{folder}.connection_pool"
        hook(agent, f"{pools}:{prefix}ConnectionPool", method, charged(way, _HTTPCORE))
        hook(agent, f"{pools}:{prefix}PoolRequest", "wait_for_connection", _queued(way))
        hook(agent, f"{folder}.connection:{prefix}HTTPConnection", "_connect", charged(way, CONNECT))
    hook(agent, "httpcore._backends.sync:SyncStream", "read", lambda read: _reading(read, blocking))
    hook(agent, "httpcore._backends.anyio:AnyIOStream", "read", lambda read: _reading(read, connected))
    stream = getattr(sys.modules.get("httpcore._backends.anyio"), "AnyIOStream", None)
    if stream is not None:
        SOCKETS[stream] = lambda stream: stream.get_extra_info("socket")


def _queued(way: Way) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        waited = way(original, POOL)

        # Not `async`: most have their connection already.
        def wait_for_connection(queued: Any, *args: Any, **kwargs: Any) -> Any:
            return (waited if getattr(queued, "connection", True) is None else original)(
                queued, *args, **kwargs
            )

        return wait_for_connection

    return make


# urllib3


def _about_urllib3(request: Any, pool: Any, method: str, *_: Any, **__: Any) -> str:
    request.upstream_count += 1
    return _label(method, pool.host, pool.port)


_URLLIB3 = Call(_CALL, _about_urllib3, ANY_NAMED)


def arm_urllib3(agent: "Agent") -> None:
    """Arm urllib3's pools, connections and responses."""
    hook(agent, "urllib3.connectionpool:HTTPConnectionPool", "urlopen", _calling)
    hook(agent, "urllib3.connectionpool:HTTPConnectionPool", "_get_conn", _from_pool)
    for owner in ("HTTPConnection", "HTTPSConnection"):
        hook(agent, f"urllib3.connection:{owner}", "connect", charged(blocking, CONNECT))
    for method in ("read", "_update_chunk_length", "_handle_chunk"):  # the last two: of a chunked body
        hook(agent, "urllib3.response:HTTPResponse", method, charged(blocking, BODY))


def _calling(original: Sync) -> Sync:
    def urlopen(pool: Any, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> Any:
        before = enter(_URLLIB3, (pool, method))
        if before is None:
            return original(pool, method, url, body, *args, **kwargs)
        try:
            args, kwargs = _carrying(before[0], pool, args, kwargs)
            response = original(pool, method, url, body, *args, **kwargs)
            _remember(response, before[0])
            return response
        finally:
            leave(before)

    return urlopen


def _carrying(worker: Strand, pool: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[tuple[Any, ...], Any]:
    """Return the arguments of `urlopen` after `body`, with a `traceparent` among the headers."""
    try:
        headers = args[0] if args else kwargs.get("headers")
        headers = pool.headers if headers is None else headers
        parent = traceparent(worker.request)
        if parent is None or any(name.lower() == "traceparent" for name in headers):
            return args, kwargs
        headers = headers.copy()  # they may be the client's, for all its calls
        headers["traceparent"] = parent
    except Exception:
        failed(worker)
        return args, kwargs
    return ((headers, *args[1:]), kwargs) if args else (args, {**kwargs, "headers": headers})


def _from_pool(original: Sync) -> Sync:
    waited = blocking(original, POOL)

    def _get_conn(pool: Any, *args: Any, **kwargs: Any) -> Any:
        return (waited if getattr(pool, "block", False) else original)(pool, *args, **kwargs)

    return _get_conn


# aiohttp


def _about_aiohttp(request: Any, session: Any, method: str, url: Any, *_: Any, **__: Any) -> str:
    request.upstream_count += 1
    whole = session._build_url(url)
    return _label(method.upper(), whole.host or "", whole.explicit_port)


_AIOHTTP = Call(_CALL, _about_aiohttp, ANY_NAMED)
_AIOHTTP_BODY = Call(_CALL, lambda _, stream, *__, **___: getattr(stream._protocol, _LABEL), ANY_NAMED)


def arm_aiohttp(agent: "Agent") -> None:
    """Arm aiohttp's client."""
    hook(agent, "aiohttp.client:ClientSession", "_request", _asking)
    hook(agent, "aiohttp.connector:BaseConnector", "_wait_for_available_connection", charged(awaited, POOL))
    for owner in ("TCPConnector", "UnixConnector"):
        hook(agent, f"aiohttp.connector:{owner}", "_create_connection", charged(awaited, CONNECT))
    hook(agent, "aiohttp.client_proto:ResponseHandler", "read", _noting_protocol)
    hook(agent, "aiohttp.streams:StreamReader", "_wait", _of_a_body)
    protocol = getattr(sys.modules.get("aiohttp.client_proto"), "ResponseHandler", None)
    stream = getattr(sys.modules.get("aiohttp.streams"), "StreamReader", None)
    if protocol is not None and stream is not None:
        SOCKETS[protocol] = lambda protocol: protocol.transport.get_extra_info("socket")
        SOCKETS[stream] = lambda stream: stream._protocol.transport.get_extra_info("socket")


def _asking(original: Async) -> Async:
    async def _request(session: Any, method: str, url: Any, **kwargs: Any) -> Any:
        before = enter(_AIOHTTP, (session, method, url))
        if before is None:
            return await original(session, method, url, **kwargs)
        try:
            return await original(session, method, url, **_with_trace(before[0], session, kwargs))
        finally:
            leave(before)

    return _request


def _with_trace(worker: Strand, session: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a request's options with a `traceparent` among the headers."""
    try:
        headers = session.headers.__class__(kwargs.get("headers") or ())
        parent = traceparent(worker.request)
        if parent is None or "traceparent" in headers or "traceparent" in session.headers:
            return kwargs
        headers["traceparent"] = parent
        return {**kwargs, "headers": headers}
    except Exception:
        failed(worker)
        return kwargs


def _noting_protocol(original: Async) -> Async:
    # Not `async`: a frame less in each of the request's steps.
    def read(protocol: Any) -> Any:
        worker = working()
        if worker is not None and worker.part == _CALL:
            worker.source = protocol  # until the call is over
            _remember(protocol, worker)
        return original(protocol)

    return read


def _of_a_body(original: Async) -> Async:
    waited = connected(original, _AIOHTTP_BODY)

    # The streams of aiohttp's server have no such label.
    def _wait(stream: Any, *args: Any, **kwargs: Any) -> Any:
        return (waited if hasattr(getattr(stream, "_protocol", None), _LABEL) else original)(
            stream, *args, **kwargs
        )

    return _wait
