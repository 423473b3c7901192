"""The demo service with all it needs, each a process of its own: the lab's default service under test."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from timesplit.errors import UsageError
from timesplit.instrumentation import DEFAULT_MODE
from timesplit.lab.forwarding import HOST, Forwarding, answers
from timesplit.lab.postgres import start_postgres
from timesplit.lab.processes import Child, Processes, free_port
from timesplit.lab.scenario import Fault
from timesplit.lab.valkey import start_valkey

JOB_WORKER_READY = "job worker ready"
START_SECONDS = 60.0
STOP_SECONDS = 35.0  # gunicorn gives its workers 30 s to finish what they began


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How the demo service runs.

    Attributes:
        workers: gunicorn workers; None for what WEB_CONCURRENCY says, else 1.
        port: where it listens; None for a free one.
        traces: `ledger`, `otel` or `off`; None for what TIMESPLIT_TRACES says, else the default mode.
        environment: further variables, see docs/settings.md.
    """

    workers: int | None = None
    port: int | None = None
    traces: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        """Return them as environment variables; `environment` loses to what has an attribute here."""
        variables = dict(self.environment)
        variables["WEB_CONCURRENCY"] = str(self.workers or os.environ.get("WEB_CONCURRENCY") or 1)
        variables["TIMESPLIT_TRACES"] = self.traces or os.environ.get("TIMESPLIT_TRACES") or DEFAULT_MODE
        return variables


class Stack:
    """The running pieces: PostgreSQL, Valkey, upstream, forwarder, job worker and the service itself."""

    def __init__(
        self, processes: Processes, runs: Path, settings: ServiceSettings, say: Callable[[str], None]
    ) -> None:
        """Start everything and wait until the service is ready.

        Args:
            processes: who starts and stops them; the service stops before the forwarder, which then gets its
                last spans, and both before what they need.
            runs: where run folders lie.
            settings: how the service runs.
            say: told what is being started.

        Raises:
            StartError: a piece does not come up.
            UsageError: the port is in use.
        """
        self._processes = processes
        self._port = free_port() if settings.port is None else require_port(settings.port)
        self.url = f"http://{HOST}:{self._port}"
        say("starting PostgreSQL and Valkey")
        self.environment = {
            **settings.variables(),
            **no_proxy(),
            "DATABASE_URL": os.environ.get("DATABASE_URL")
            or start_postgres(processes, processes.state / "postgres"),
            "CACHE_URL": os.environ.get("CACHE_URL") or start_valkey(processes),
        }
        say("starting upstream, forwarder, job worker and service")
        self._forwarding = Forwarding(processes, runs)
        self.environment |= self._forwarding.environment()
        waits = [self._start_upstream(), (self._forwarding.child, self._forwarding.is_ready)]
        self._prepare_database()
        self._job_worker, job_worker_ready = self._start_job_worker()
        self._service, service_ready = self._start_service()
        for child, ready in (*waits, (self._job_worker, job_worker_ready), (self._service, service_ready)):
            child.wait_ready(ready, START_SECONDS)

    def check(self) -> None:
        """Fail if the service or the forwarder has ended.

        Raises:
            StartError: with the last lines of its output.
        """
        for child in (self._service, self._forwarding.child):
            if child.exit_code is not None:
                raise child.start_error(f"ended with exit code {child.exit_code} while it was needed")

    def carry_out(self, fault: Fault) -> dict[str, Any]:
        """Break something, and return what was done, for `run.json`."""
        done = {"at": fault.at, "process": fault.process, "signal": fault.signal, "restart": fault.restart}
        number = signal.Signals[f"SIG{fault.signal}"]
        if fault.process == "service-worker":
            worker = psutil.Process(self._service.pid).children()[0]
            worker.send_signal(number)
            return {**done, "pid": worker.pid}
        self._job_worker.signal(number)
        pid = self._job_worker.pid
        if fault.restart:
            self._processes.stop(self._job_worker)
            self._job_worker, _ = self._start_job_worker()
        return {**done, "pid": pid}

    def stop_service(self) -> None:
        """Stop the service, then the forwarder: all records that there are, are written after that."""
        self._processes.stop(self._service, STOP_SECONDS)
        self._forwarding.stop()

    def _start_upstream(self) -> tuple[Child, Callable[[], bool]]:
        port = free_port()
        url = self.environment["UPSTREAM_URL"] = f"http://{HOST}:{port}"
        command = [sys.executable, "-m", "service.upstream", "--host", HOST, "--port", str(port)]
        return self._start("upstream", command), lambda: answers(f"{url}/healthz")

    def _prepare_database(self) -> None:
        for step in ("migrate", "seed"):
            self._start(step, [sys.executable, "-m", "service.database", step]).finish()

    def _start_job_worker(self) -> tuple[Child, Callable[[], bool]]:
        child = self._start("job-worker", [sys.executable, "-m", "service.worker"])
        return child, lambda: JOB_WORKER_READY in child.output()

    def _start_service(self) -> tuple[Child, Callable[[], bool]]:
        command = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"]
        command += ["--bind", f"{HOST}:{self._port}", "service.app:create_app()"]
        return self._start("service", command), lambda: answers(f"{self.url}/readyz")

    def _start(self, name: str, command: list[str]) -> Child:
        return self._processes.start(name, command, env=self.environment)


def require_demo_service() -> None:
    """Check that the demo service is in the current folder.

    Raises:
        UsageError: it is not.
    """
    if not Path("service/app.py").is_file():
        raise UsageError(f"no demo service in {Path.cwd()}: run in timesplit's own folder, or use --host URL")


def no_proxy() -> dict[str, str]:
    """Keep what goes from piece to piece away from a proxy that the user may have set."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    return dict.fromkeys(("no_proxy", "NO_PROXY"), f"{others},{HOST}" if others else HOST)


def require_port(port: int) -> int:
    """Return the port if nothing listens on it.

    Raises:
        UsageError: something does, or this user may not.
    """
    with socket.socket() as probe:
        # As servers do: a port whose last connections are just closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"port {port}: {error.strerror}; choose another with --port, or leave it out"
            ) from None
    return port
