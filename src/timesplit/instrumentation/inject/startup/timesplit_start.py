"""Waits, in a program that may be anything, for the import of an ASGI server or framework; then arms the agent.

The package itself is not on the path: its folder would bring all that is installed beside it into the application's
environment. It is found by name, in its own place, when somebody imports it.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

TYPE_CHECKING = False  # `typing` takes longer to import than a small program to start
if TYPE_CHECKING:
    from typing import Any

PACKAGE = "timesplit"
STARTUP = os.path.dirname(os.path.abspath(__file__))
PLACE = os.path.abspath(os.path.join(STARTUP, *[os.pardir] * 4))  # what holds the package
# Only where one of these is imported, requests are served.
SERVERS = frozenset(
    (
        "fastapi.applications",
        "gunicorn.workers.gasgi",
        "hypercorn.app_wrappers",
        "starlette.applications",
        "uvicorn.server",
    )
)
OPENTELEMETRY = "opentelemetry.instrumentation.auto_instrumentation"


def wait() -> None:
    """Begin to wait."""
    sys.meta_path.insert(0, Start)


class Start:
    """A finder: of the package, wherever it is imported; and of a server, when the agent is armed."""

    waiting = True

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """Find the package; at the first server, let the agent's own watch find that."""
        if name == PACKAGE:
            return PathFinder.find_spec(name, [PLACE])
        try:
            if name in SERVERS and cls.waiting:
                cls.waiting = False
                from timesplit.instrumentation import agent

                return agent.arm_injected(name, path, target)
            if name == OPENTELEMETRY:
                from timesplit.instrumentation.imports import Watch

                return Watch([name], _go_first).find_spec(name, path, target)  # type: ignore[arg-type]  # passed on
        except Exception as error:
            if os.environ.get("TIMESPLIT_DEBUG"):
                sys.stderr.write(f"timesplit: not armed: {type(error).__name__}: {error}\n")
        return None


def _go_first(name: str) -> None:
    """Stay first on the path of what `opentelemetry-instrument` starts: its own sitecustomize looks for no other."""
    launcher: Any = sys.modules[name]

    def execl(file: str, *args: str) -> None:
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join([STARTUP, *(path for path in paths if path != STARTUP)])
        os.execl(file, *args)

    if hasattr(launcher, "execl"):
        launcher.execl = execl
