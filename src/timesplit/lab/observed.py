"""The service whose cost is measured by `timesplit bench observer`: three plain routes, observed or not.

Run by gunicorn as `timesplit.lab.observed:create_app('VARIANT')`.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI

VARIANTS = ("bare", "ledger", "otel", "contrib", "native")


def create_app(variant: str) -> FastAPI:
    """Make the application.

    Args:
        variant: `bare`; `ledger` and `otel` as `timesplit.instrument` does it; `contrib`: FastAPIInstrumentor as it
            comes; `native`: FastAPI's own telemetry. Their spans are made, batched, and thrown away.
    """
    app = FastAPI(lifespan=_connected)

    @app.get("/noop")
    async def noop() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/noop-def")
    def noop_def() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/query")
    async def query() -> dict[str, int]:
        return {"n": await app.state.pool.fetchval("select 1")}

    _observe(app, variant)
    return app


@asynccontextmanager
async def _connected(app: FastAPI) -> AsyncGenerator[None]:
    if "DATABASE_URL" not in os.environ:
        yield
        return
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=20, max_size=20) as pool:
        app.state.pool = pool
        yield


def _observe(app: FastAPI, variant: str) -> None:
    if variant in ("ledger", "otel"):
        import timesplit  # the bare variant must not even load it

        os.environ["TIMESPLIT_TRACES"] = variant
        timesplit.instrument(app)
    elif variant in ("contrib", "native"):
        _trace(app, variant)


def _trace(app: FastAPI, variant: str) -> None:
    from opentelemetry import trace  # only where it is what is measured
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        """Throws spans away: the cost of encoding and sending is not even counted."""

        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    if variant == "native":
        trace.set_tracer_provider(provider)
    else:
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
