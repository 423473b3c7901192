"""`timesplit bench observer`: starts the same small service in every variant, and measures what observing costs."""

import sys
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

from timesplit.errors import StartError, UsageError
from timesplit.lab.observed import VARIANTS
from timesplit.lab.observer import BARE, Cost, Server, measure
from timesplit.lab.postgres import start_postgres
from timesplit.lab.processes import Child, Processes, free_port

ROUTES = ("/noop", "/query", "/noop-def")
SERVED_ON, DRIVEN_ON = 0, 1  # cores
# Pins itself, then becomes the command: the workers inherit it.
_PINNED = """
import os, sys
if int(sys.argv[1]) < os.cpu_count():
    os.sched_setaffinity(0, {int(sys.argv[1])})
os.execv(sys.argv[2], sys.argv[2:])
"""


def bench_observer(
    state: Path,
    routes: Sequence[str],
    variants: Sequence[str],
    rounds: int,
    seconds: float,
    tell: Callable[[str], None],
) -> dict[str, list[Cost]]:
    """Measure each route in each variant beside two bare servers.

    Args:
        state: folder for logs, data and journals.
        routes: of `observed`, see ROUTES.
        variants: of `observed.VARIANTS`.
        rounds: how many a route.
        seconds: length of a round.
        tell: told of progress, a line each.

    Returns:
        By route, what each variant cost, bare against bare first.

    Raises:
        UsageError: there is no such route or variant, or the system does not tell the CPU time of a process.
        StartError: a process did not come up.
    """
    _check(routes, variants)
    with Processes(state) as processes:
        url = start_postgres(processes, state / "postgres")
        journals = state / "journals"
        environment = {"DATABASE_URL": url, "TIMESPLIT_JOURNAL": str(journals), "OTEL_SDK_DISABLED": "false"}
        port = free_port()
        forwarder = [
            "-m",
            "timesplit.forwarder",
            "--port",
            str(port),
            "--runs",
            str(state / "runs"),
            "--journals",
            str(journals),
        ]
        processes.start("forwarder", _pinned(DRIVEN_ON, forwarder))
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"
        started = {name: _start(processes, name, environment) for name in (*BARE, *variants)}
        pids = {name: _worker(child) for name, (child, _) in started.items()}
        found = {}
        for route in routes:
            servers = [Server(name, root + route, pids[name]) for name, (_, root) in started.items()]
            found[route] = measure(servers, rounds, seconds, _teller(route, tell))
        return found


def _teller(route: str, tell: Callable[[str], None]) -> Callable[[int, float], None]:
    return lambda number, null: tell(f"{route} round {number}: bare/bare {null:.3f}")


def _check(routes: Sequence[str], variants: Sequence[str]) -> None:
    if sys.platform != "linux":
        raise UsageError("bench observer reads the CPU time of processes from /proc, which only Linux has")
    for given, known in ((routes, ROUTES), (variants, VARIANTS)):
        wrong = sorted(set(given) - set(known))
        if wrong:
            raise UsageError(f"unknown: {', '.join(wrong)}; there are {', '.join(known)}")


def _pinned(core: int, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", _PINNED, str(core), sys.executable, *arguments]


def _start(processes: Processes, name: str, environment: dict[str, str]) -> tuple[Child, str]:
    port = free_port()
    variant = "bare" if name in BARE else name
    command = ["-m", "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-w", "1", "-b", f"127.0.0.1:{port}"]
    app = f"timesplit.lab.observed:create_app({variant!r})"
    child = processes.start(
        name, _pinned(SERVED_ON, [*command, "--log-level", "error", app]), env=environment
    )
    root = f"http://127.0.0.1:{port}"
    child.wait_ready(lambda: _answers(root + "/noop"))
    return child, root


def _answers(url: str) -> bool:
    with suppress(URLError, OSError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


def _worker(child: Child) -> int:
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    if len(children) != 1:
        raise StartError(f"{child.name} has {len(children)} workers instead of one; its log is {child.log}")
    return int(children[0])
