"""The user's own service under test: an application that the lab serves, or a command that serves it.

Either runs in the application's own environment, with the agent put on its path: no change of its code.
"""

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError

from timesplit.errors import UsageError
from timesplit.instrumentation import DEFAULT_MODE, inject
from timesplit.lab.forwarding import HOST, Forwarding
from timesplit.lab.processes import Child, Processes, free_port
from timesplit.lab.scenario import Fault
from timesplit.lab.stack import START_SECONDS, STOP_SECONDS, no_proxy, require_port

ARMED_SECONDS: Final = 5.0  # after the service is ready: by then its workers have journals
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# Run by the application's Python: what is installed there, and what the name stands for.
_PROBE: Final = """
import importlib, importlib.util, inspect, json, sys
sys.path.insert(0, "")
missing = [name for name in ("gunicorn", "uvicorn_worker") if importlib.util.find_spec(name) is None]
module, _, attribute = sys.argv[1].partition(":")
found = importlib.import_module(module)
for name in (attribute or "app").split("."):
    found = getattr(found, name)
asgi = hasattr(found, "routes") or inspect.iscoroutinefunction(found)
asgi = asgi or inspect.iscoroutinefunction(getattr(found, "__call__", None))
print(json.dumps({"missing": missing, "factory": not asgi}))
"""


@dataclass(frozen=True, slots=True)
class OwnSettings:
    """How the user's service is started.

    Attributes:
        command: the whole command; it listens at `url`.
        url: where it listens.
        traces: `ledger`, `otel` or `off`; None for what TIMESPLIT_TRACES says, else the default mode.
    """

    command: tuple[str, ...]
    url: str
    traces: str | None = None

    def variables(self) -> dict[str, str]:
        """Return what `run.json` says of the service."""
        traces = self.traces or os.environ.get("TIMESPLIT_TRACES") or DEFAULT_MODE
        return {"command": shlex.join(self.command), "TIMESPLIT_TRACES": traces}


class OwnService:
    """The user's service, running, with a forwarder beside it."""

    def __init__(
        self, processes: Processes, runs: Path, settings: OwnSettings, say: Callable[[str], None]
    ) -> None:
        """Start it, and wait for its first HTTP answer, whatever that is.

        Raises:
            StartError: it ends or does not answer.
        """
        self._processes = processes
        self.url = settings.url
        self._say = say
        self._forwarding = Forwarding(processes, runs)
        traces = settings.variables()["TIMESPLIT_TRACES"]
        self.environment = {
            **inject.environment(os.environ, traces=traces),
            **self._forwarding.environment(),
            **no_proxy(),
        }
        self._forwarding.child.wait_ready(self._forwarding.is_ready, START_SECONDS)
        say(f"starting {shlex.join(settings.command)}")
        self._service: Child = processes.start("service", settings.command, env=self.environment)
        self._service.wait_ready(lambda: answers_at_all(self.url), START_SECONDS)
        self._ready = time.monotonic()
        self._told = traces == "off"

    def check(self) -> None:
        """Fail if the service has ended; say once if nothing records its requests.

        Raises:
            StartError: with the last lines of its output.
        """
        if self._service.exit_code is not None:
            raise self._service.start_error(
                f"ended with exit code {self._service.exit_code} while it was needed"
            )
        if not self._told and time.monotonic() - self._ready > ARMED_SECONDS:
            self._told = True
            if not inject.anything_armed(self._forwarding.journals):
                self._say(inject.NOTHING_ARMED)

    def carry_out(self, fault: Fault) -> dict[str, Any]:
        """Refuse: the lab does not know what the service is made of.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"the scenario breaks the demo service's {fault.process}; yours has none that the lab knows"
        )

    def stop_service(self) -> None:
        """Stop the service, then the forwarder: all records that there are, are written after that."""
        self._processes.stop(self._service, STOP_SECONDS)
        self._forwarding.stop()


def serving(app: str, python: Path, workers: int, port: int | None, traces: str | None) -> OwnSettings:
    """Return how to serve an application: gunicorn with uvicorn workers, in the application's environment.

    Args:
        app: `module:name` of an ASGI application, or of a function that makes one.
        python: interpreter of its environment.
        workers: how many.
        port: where it listens; None for a free one.
        traces: see OwnSettings.

    Raises:
        UsageError: it cannot be imported, or what serves it is not installed there.
    """
    found = _probe(app, python)
    if found["missing"]:
        packages = " ".join(name.replace("_", "-") for name in found["missing"])
        raise UsageError(f"{app} cannot be served: {python} -m pip install {packages}")
    listens = free_port() if port is None else require_port(port)
    target = f"{app}()" if found["factory"] and not app.endswith(")") else app
    command = [str(python), "-m", "gunicorn", "--worker-class", "uvicorn_worker.UvicornWorker"]
    command += ["--workers", str(workers), "--bind", f"{HOST}:{listens}", "--graceful-timeout", "25", target]
    return OwnSettings(tuple(command), f"http://{HOST}:{listens}", traces)


def interpreter(asked: Path | None) -> Path:
    """Return the application's Python: what was asked for, else of $VIRTUAL_ENV, else of ./.venv, else ours.

    Raises:
        UsageError: the one that was asked for is not there.
    """
    if asked is not None:
        if not os.access(asked, os.X_OK):
            raise UsageError(f"--python {asked}: there is no such program")
        return asked.absolute()  # not resolved: a link in an environment leads out of it
    places = [Path(place) for place in (os.environ.get("VIRTUAL_ENV"), ".venv") if place]
    found = (place / "bin" / "python" for place in places)
    return next((path.absolute() for path in found if path.is_file()), Path(sys.executable))


def answers_at_all(url: str) -> bool:
    """Tell whether a GET of the URL is answered, with whatever status."""
    try:
        with _DIRECT.open(url, timeout=2):
            return True
    except HTTPError:
        return True
    except OSError:
        return False


def _probe(app: str, python: Path) -> dict[str, Any]:
    module = app.partition("(")[0]
    done = _run([str(python), "-c", _PROBE, module])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UsageError(f"--app {app}: {last}; it is module:name, as seen from {Path.cwd()} by {python}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TIMESPLIT": "off"}
    )
