"""Runs a scenario: the service with all it needs, the load, the faults, and nothing left over."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from timesplit.errors import RunFolderError, TargetUnreachable, UsageError
from timesplit.instrumentation import inject
from timesplit.lab.display import Display
from timesplit.lab.forwarding import Forwarding
from timesplit.lab.generator import Generator
from timesplit.lab.own import OwnService, OwnSettings
from timesplit.lab.processes import Processes
from timesplit.lab.scenario import Scenario
from timesplit.lab.stack import ServiceSettings, Stack, require_demo_service
from timesplit.runfolder import UNCLAIMED, RunFolder, runs_root
from timesplit.schema import SERVER

STATE = Path(".lab")
APPLICATION = "service.app:create_app"
# A forwarder that the lab did not start writes the last spans so long after the load: a worker exports once a
# second, the forwarder holds requests for 1.5 s and writes every 2 s.
SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.1
_IN_PROCESS_SECONDS = 120.0
_SECRET_NAME = re.compile("KEY|TOKEN(?!S)|SECRET|PASSWORD", re.IGNORECASE)  # THREAD_TOKENS is a number
_URL_USER = re.compile("//[^/@]*@")


Started = Stack | OwnService
Target = ServiceSettings | OwnSettings | str


class ScenarioRun:
    """A run of a scenario; after it, or where it broke off, `folder` is where its records are."""

    def __init__(self, scenario: Scenario, display: Display, target: Target) -> None:
        """Prepare a run.

        Args:
            scenario: what is run.
            display: where its progress is shown.
            target: the service under test: the demo service, the user's own, or the URL of one that runs already.
        """
        self.folder: Path | None = None
        self._scenario = scenario
        self._display = display
        self._target = target
        self._faults = sorted(scenario.faults, key=lambda fault: fault.at)
        self._carried_out: list[dict[str, Any]] = []

    def carry_out(self) -> Path:
        """Start what is needed, drive the load, stop everything again, and return the run folder.

        Raises:
            TargetUnreachable: nothing answers at `host`.
            StartError: a piece of the lab does not come up, or ends in the run.
            ScenarioError: Locust cannot run the scenario.
        """
        try:
            return self._drive_host(self._target) if isinstance(self._target, str) else self._drive_started()
        finally:
            self._complete_run_json()

    def _drive_host(self, host: str) -> Path:
        require_answer(host)
        if self._faults:
            raise UsageError(f"{self._scenario.name} breaks parts of the demo service; run it without --host")
        # Not the demo service's own state folder: it may be the one that runs there.
        with Processes(STATE / "generator") as processes:
            folder = self._drive(processes, host, {}, None)
        if (folder / SERVER.name).is_dir():
            self._display.say("waiting for the last spans of the service")
            time.sleep(SETTLE_SECONDS)
        return folder

    def _drive_started(self) -> Path:
        if isinstance(self._target, ServiceSettings):
            require_demo_service()
        elif self._faults:
            raise UsageError(
                f"{self._scenario.name} breaks parts of the demo service, of which yours has none"
            )
        with Processes(STATE) as processes:
            service = self._start(processes)
            traces = {"TIMESPLIT_TRACES": service.environment["TIMESPLIT_TRACES"]}
            folder = self._drive(processes, service.url, traces, service)
            self._display.say("stopping the service")
            service.stop_service()
            if self._scenario.in_process and isinstance(service, Stack):
                self._drive_in_process(processes, service, folder)
            return folder

    def _start(self, processes: Processes) -> Started:
        if isinstance(self._target, OwnSettings):
            return OwnService(processes, runs_root(), self._target, self._display.say)
        assert isinstance(self._target, ServiceSettings)  # a URL is not started
        return Stack(processes, runs_root(), self._target, self._display.say)

    def _drive(self, processes: Processes, host: str, env: Mapping[str, str], stack: Started | None) -> Path:
        self._display.say(f"running {self._scenario.name} against {_URL_USER.sub('//', host)}")
        generator = Generator(processes, self._scenario, host, {"TIMESPLIT_RUNS": str(runs_root()), **env})
        while generator.goes_on():
            for progress in generator.progress():
                self.folder = Path(progress.run)
                self._display.progress(progress, self._scenario.duration)
            if stack:
                stack.check()
                self._break_what_is_due(stack)
            time.sleep(_POLL_SECONDS)
        if self.folder is None:
            raise generator.error()
        return self.folder

    def _break_what_is_due(self, stack: Started) -> None:
        while (
            self.folder
            and self._faults
            and (elapsed := seconds_since_start(self.folder)) >= self._faults[0].at
        ):
            fault = stack.carry_out(self._faults.pop(0))
            self._carried_out.append({**fault, "done_at": round(elapsed, 3)})

    def _drive_in_process(self, processes: Processes, stack: Stack, folder: Path) -> None:
        """Make the bursts in process, after the load: beside it, each would slow the other down."""
        self._display.say("the same bursts in process, as a test would make them")
        command = [sys.executable, "-m", "timesplit.lab.inprocess", str(folder), "--app", APPLICATION]
        child = processes.start("in-process", command, env={**stack.environment, "TIMESPLIT_TRACES": "off"})
        child.finish(_IN_PROCESS_SECONDS)

    def _complete_run_json(self) -> None:
        """Add to `run.json` what only the lab knows; a run that broke off early may have none."""
        if self.folder is None:
            return
        run = RunFolder(self.folder)
        with suppress(RunFolderError):
            meta = run.meta()
            if not isinstance(self._target, str):
                meta["service"] = publishable(self._target.variables())
            run.write_meta({**meta, "faults": self._carried_out})


def seconds_since_start(run: Path) -> float:
    """Return how long ago the run began; it goes on, on this host."""
    began: int = RunFolder(run).meta()["began"]["monotonic"]
    return (time.monotonic_ns() - began) / 1e9


def serve_demo(settings: ServiceSettings, say: Callable[[str], None]) -> NoReturn:
    """Run the demo service, with all it needs and the forwarder, until it is interrupted.

    Raises:
        StartError: a piece of the lab does not come up, or the service ends.
    """
    require_demo_service()
    with Processes(STATE) as processes:
        stack = Stack(processes, runs_root(), settings, say)
        say(f"it answers at {stack.url}; load: timesplit run mixed --host {stack.url}; Ctrl-C ends it")
        while True:
            stack.check()
            time.sleep(_POLL_SECONDS)


def serve_command(settings: OwnSettings, say: Callable[[str], None]) -> int:
    """Run any command with the agent, and a forwarder beside it, until it ends; return its exit code."""
    with Processes(STATE) as processes:
        forwarding = Forwarding(processes, runs_root())
        forwarding.child.wait_ready(forwarding.is_ready)
        traces = settings.variables()["TIMESPLIT_TRACES"]
        environment = {**inject.environment(os.environ, traces=traces), **forwarding.environment()}
        say(f"records of marked requests go to {runs_root()}, of others to {runs_root() / UNCLAIMED}")
        command = subprocess.Popen(settings.command, env=environment)
        try:
            return command.wait()
        finally:
            if command.poll() is None:  # Ctrl-C reached it too; it may need a moment
                command.terminate()
                command.wait()
            forwarding.stop()


def require_answer(host: str) -> None:
    """Check that something listens where the URL points.

    Raises:
        UsageError: it is no URL.
        TargetUnreachable: nothing listens there.
    """
    try:
        url = urlsplit(host)
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    except ValueError as error:
        raise UsageError(f"--host {host}: {error}") from None
    if not url.hostname or not port:
        raise UsageError(f"--host {host}: must be a URL such as http://127.0.0.1:8000")
    try:
        socket.create_connection((url.hostname, port), timeout=5).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise TargetUnreachable(
            f"{url.hostname}:{port} does not answer ({reason}); is the service up?"
        ) from None


def publishable(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without what a run folder must not tell."""
    return {
        name: "…" if _SECRET_NAME.search(name) else _URL_USER.sub("//…@", value)
        for name, value in variables.items()
    }
