"""Arms OpenTelemetry's instrumentations of the libraries by which a request waits for others."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from opentelemetry import metrics
from opentelemetry.sdk.trace import TracerProvider

from timesplit import spanfacts

log = logging.getLogger(__name__)

Undo = Callable[[], None]
Armer = Callable[[TracerProvider, ExitStack], None]


@contextmanager
def armed_libraries(provider: TracerProvider) -> Iterator[frozenset[str]]:
    """Arm what can be armed here, until the block ends; gives the kinds of calls that are recorded.

    A library is passed over if it or its instrumentation is not installed, or the application instruments it.
    """
    with ExitStack() as undo:
        yield frozenset(kind for library, kind, armer in _armers() if _armed(library, armer, provider, undo))


def _armers() -> Iterator[tuple[str, str, Armer]]:
    yield "sqlalchemy", spanfacts.QUERIES, _arm_sqlalchemy
    yield "redis", spanfacts.CACHE, _contrib("redis", "RedisInstrumentor")
    yield "httpx", spanfacts.UPSTREAM, _contrib("httpx", "HTTPXClientInstrumentor")
    yield "requests", spanfacts.UPSTREAM, _contrib("requests", "RequestsInstrumentor")


def _armed(library: str, armer: Armer, provider: TracerProvider, undo: ExitStack) -> bool:
    if find_spec(library) is None:
        return False
    try:
        armer(provider, undo)
    except Exception as error:  # whatever an instrumentation does, the service starts
        log.warning("calls by %s are not recorded: %s", library, error)
        return False
    return True


def _contrib(module: str, name: str, **options: bool) -> Armer:
    def armer(provider: TracerProvider, undo: ExitStack) -> None:
        instrumentor = getattr(import_module(f"opentelemetry.instrumentation.{module}"), name)()
        if instrumentor.is_instrumented_by_opentelemetry:
            raise RuntimeError("the application has instrumented it already")
        instrumentor.instrument(tracer_provider=provider, raise_exception_on_conflict=True, **options)
        undo.callback(instrumentor.uninstrument)

    return armer


def _arm_sqlalchemy(provider: TracerProvider, undo: ExitStack) -> None:
    # Its own check refuses SQLAlchemy 2.1, with which it works; our tests hold it to that.
    _contrib("sqlalchemy", "SQLAlchemyInstrumentor", skip_dep_check=True)(provider, undo)
    from opentelemetry.instrumentation.sqlalchemy.engine import EngineTracer
    from sqlalchemy import Connection, Engine, event

    tracer = provider.get_tracer("timesplit.sqlalchemy")
    usage = metrics.get_meter("timesplit.sqlalchemy").create_up_down_counter("db.client.connections.usage")

    # contrib sees only engines that are made later, and by the patched name: neither a module-level engine,
    # nor one made after `from sqlalchemy.ext.asyncio import create_async_engine`. So all are watched.
    def trace_engine(connection: Connection) -> None:
        engine: Any = connection.engine
        while hasattr(engine, "_proxied"):  # made by execution_options(): its origin's events are its own
            engine = engine._proxied
        listeners = engine.dispatch.before_cursor_execute
        if not any(isinstance(getattr(listener, "__self__", None), EngineTracer) for listener in listeners):
            EngineTracer(tracer, engine, usage)  # type: ignore[no-untyped-call]  # contrib has no types here

    event.listen(Engine, "engine_connect", trace_engine)
    undo.callback(event.remove, Engine, "engine_connect", trace_engine)
