"""The demo service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import timesplit
from service import failures
from service.resources import open_resources
from service.routes import after_response, cache, cpu, database, jobs, operations, streams, upstream, waiting
from service.settings import Settings, read_settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application.

    Args:
        settings: the settings; None reads them from the environment.

    Raises:
        SettingsError: the environment does not fit.
    """
    settings = settings or read_settings(Settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_resources(settings) as app.state.resources:
            yield

    app = FastAPI(
        title="timesplit demo service",
        description="An ordinary service, beside the mistakes that timesplit is there to show.",
        version="1",
        lifespan=lifespan,
        max_body_size=settings.max_body_size,
    )
    for routes in (waiting, database, cache, upstream, cpu, after_response, jobs, streams, operations):
        app.include_router(routes.router)
    failures.handle(app)
    return timesplit.instrument(app)
