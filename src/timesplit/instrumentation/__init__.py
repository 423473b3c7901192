"""What runs inside the service's worker. Standard library only."""

import importlib
import logging
import os
from typing import Protocol, TypeVar

from timesplit.errors import UsageError

log = logging.getLogger(__name__)

MODES = ("otel", "off")
DEFAULT_MODE = "otel"


class Application(Protocol):
    """An ASGI application with a router, such as FastAPI or Starlette."""

    @property
    def router(self) -> object:
        """The application's router, whose lifespan tells when the worker starts and stops."""


App = TypeVar("App", bound=Application)


def instrument(app: App) -> App:
    """Record where each of the app's requests spends its time.

    What is recorded is chosen by `TIMESPLIT_TRACES`: `otel` (spans of the OpenTelemetry SDK) or `off`.
    Call it once, as the last step of building the app.

    Returns:
        The same app.

    Raises:
        UsageError: `TIMESPLIT_TRACES` names no mode, or one whose packages are not installed.
    """
    asked = os.environ.get("TIMESPLIT_TRACES")
    mode = asked or DEFAULT_MODE
    if mode not in MODES:
        raise UsageError(f"TIMESPLIT_TRACES={mode}: use one of {', '.join(MODES)}")
    if mode == "otel":
        _instrument_otel(app, asked=bool(asked))
    return app


def _instrument_otel(app: Application, *, asked: bool) -> None:
    try:
        # By name: this package is standard library only, and `off` must not load the SDK.
        tracing = importlib.import_module("timesplit.tracing")
    except ImportError as error:
        missing = f"no spans without {error.name or error}: pip install 'timesplit[otel]', or set TIMESPLIT_TRACES=off"
        if asked:
            raise UsageError(f"TIMESPLIT_TRACES=otel: {missing}") from None
        log.warning("%s", missing)
    else:
        tracing.instrument(app)
