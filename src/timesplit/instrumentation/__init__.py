"""What runs inside the service's worker. Standard library only."""

import importlib
import os
from typing import Protocol, TypeVar

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
        ValueError: `TIMESPLIT_TRACES` names no mode.
    """
    mode = os.environ.get("TIMESPLIT_TRACES") or DEFAULT_MODE
    if mode not in MODES:
        raise ValueError(f"TIMESPLIT_TRACES={mode}: use one of {', '.join(MODES)}")
    if mode == "otel":
        # By name: this package is standard library only, and `off` must not load the SDK.
        importlib.import_module("timesplit.tracing").instrument(app)
    return app
