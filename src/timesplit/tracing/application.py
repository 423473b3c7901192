"""Instruments an application: its spans are made by FastAPIInstrumentor, from lifespan start to lifespan end.

`TIMESPLIT_OTEL=native` has FastAPI's own telemetry make them instead. The provider is never made the global one:
that telemetry wakes up with any global provider, also in mounted FastAPI applications, and would make a second server
span beside FastAPIInstrumentor's; without one it stays silent.
"""

import logging
import os
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from starlette.types import ASGIApp, Lifespan

from timesplit.errors import UsageError
from timesplit.tracing.exchange import as_exchanges
from timesplit.tracing.native import instrument_natively
from timesplit.tracing.process import ProcessTracing

log = logging.getLogger(__name__)
CONTRIB, NATIVE = "contrib", "native"  # who makes the server spans
_instrumented: weakref.WeakSet[FastAPI] = weakref.WeakSet()


def instrument(app: FastAPI) -> None:
    """Make server spans of the app's requests, and spans of what they call, and export them by OTLP.

    Nothing starts before the app's lifespan does, so the app may be made before the workers are forked. A
    second call does nothing. An app that is traced already keeps its own spans and gets no second ones.

    Raises:
        UsageError: `TIMESPLIT_OTEL` asks for spans that cannot be made here.
    """
    maker = os.environ.get("TIMESPLIT_OTEL") or CONTRIB
    if maker not in (CONTRIB, NATIVE):
        raise UsageError(f"TIMESPLIT_OTEL={maker}: use {CONTRIB} or {NATIVE}")
    if app in _instrumented:
        return
    if _is_traced(app):
        log.warning("the application has OpenTelemetry tracing of its own; timesplit adds no spans to it")
        return
    _instrumented.add(app)
    # Today's attribute names, unless the environment asks for others; contrib reads it once per process.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
    tracing = _tracing()
    if maker == NATIVE:
        instrument_natively(app, tracing.provider)
    else:
        _instrument_by_contrib(app, tracing.provider)
    app.router.lifespan_context = _traced(app.router.lifespan_context, tracing)


def _instrument_by_contrib(app: FastAPI, provider: TracerProvider) -> None:
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, exclude_spans=["receive", "send"])
    build: Callable[[], ASGIApp] = app.build_middleware_stack
    app.build_middleware_stack = lambda: as_exchanges(build())  # type: ignore[method-assign]  # contrib's own way


_tracing = cache(ProcessTracing)  # one per process, because contrib patches libraries once per process


def _is_traced(app: FastAPI) -> bool:
    configured = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    return configured or getattr(app, "_is_instrumented_by_opentelemetry", False)


def _traced(lifespan: Lifespan[Any], tracing: ProcessTracing) -> Lifespan[Any]:
    @asynccontextmanager
    async def traced(app: Any) -> AsyncGenerator[Any, None]:
        try:
            tracing.start()
            async with lifespan(app) as state:
                yield state
        finally:
            tracing.stop()

    return traced
