"""What runs inside the service's worker. Standard library only."""

import importlib
import logging
import os
from typing import Protocol, TypeVar

from timesplit.errors import UsageError

log = logging.getLogger(__name__)

MODES = ("ledger", "otel", "off")
DEFAULT_MODE = "ledger"


class Application(Protocol):
    """An ASGI application with a router, such as FastAPI or Starlette."""

    @property
    def router(self) -> object:
        """The application's router, whose lifespan tells when the worker starts and stops."""


App = TypeVar("App", bound=Application)


def instrument(app: App) -> App:
    """Record where each of the app's requests spends its time.

    What is recorded is chosen by `TIMESPLIT_TRACES`: `ledger` (all parts of each request), `otel` (spans of the
    OpenTelemetry SDK; the server's span carries the parts) or `off`. `TIMESPLIT=off` leaves out the parts.
    Call it once, as the last step of building the app.

    Returns:
        The same app.

    Raises:
        UsageError: `TIMESPLIT_TRACES` names no mode, or one whose packages are not installed.
    """
    if wants_ledger():
        _arm()
    if mode() == "otel":
        make_spans(app, asked=bool(os.environ.get("TIMESPLIT_TRACES")))
    return app


def uninstrument() -> None:
    """Take back all that records the parts of requests in this process. Spans of mode `otel` stay."""
    from timesplit.instrumentation import agent  # here, as above

    agent.disarm()


def mode() -> str:
    """Return what `TIMESPLIT_TRACES` says.

    Raises:
        UsageError: it names no mode.
    """
    asked = os.environ.get("TIMESPLIT_TRACES") or DEFAULT_MODE
    if asked not in MODES:
        raise UsageError(f"TIMESPLIT_TRACES={asked}: use one of {', '.join(MODES)}")
    return asked


def wants_ledger() -> bool:
    """Tell whether parts are to be recorded: in `ledger` and `otel`, unless `TIMESPLIT=off`.

    Raises:
        UsageError: `TIMESPLIT_TRACES` names no mode.
    """
    return mode() != "off" and os.environ.get("TIMESPLIT", "").lower() != "off"


def _arm() -> None:
    try:
        from timesplit.instrumentation import agent  # here: without a ledger, none of it is loaded

        agent.arm()
    except Exception as error:  # the service starts, whatever is wrong with us
        log.warning("timesplit records nothing here: %s", error)


def make_spans(app: object, *, asked: bool) -> None:
    """Make spans of an app's requests with the OpenTelemetry SDK.

    Args:
        app: a FastAPI application.
        asked: whether somebody asked for mode `otel`; else its packages may be missing.

    Raises:
        UsageError: they are missing, and it was asked for.
    """
    try:
        # By name: this package is standard library only, and the other modes must not load the SDK.
        tracing = importlib.import_module("timesplit.tracing.application")
    except ImportError as error:
        missing = f"no spans without {error.name or error}: pip install 'timesplit[otel]', or set TIMESPLIT_TRACES=off"
        if asked:
            raise UsageError(f"TIMESPLIT_TRACES=otel: {missing}") from None
        log.warning("%s", missing)
    else:
        tracing.instrument(app)
