"""Locust as the lab runs it: a process of its own, headless, that tells its progress through a file."""

import json
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping

from timesplit.errors import ScenarioError, TimesplitError
from timesplit.lab.display import Progress
from timesplit.lab.processes import Child, Processes, free_port
from timesplit.lab.scenario import Scenario

STOP_TIMEOUT = 5  # seconds that users have at the end for what they began
_FRAME = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+)')


class Generator:
    """A run of Locust."""

    def __init__(self, processes: Processes, scenario: Scenario, host: str, env: Mapping[str, str]) -> None:
        """Start it.

        Args:
            processes: who starts and stops it.
            scenario: what it does.
            host: URL of the service under test.
            env: variables beside those of the scenario.
        """
        self._progress = processes.state.absolute() / "progress.jsonl"
        self._progress.write_text("")
        self._told = 0
        self._ended = False
        self._scenario = scenario
        own = {
            "TIMESPLIT_SCENARIO": scenario.name,
            "TIMESPLIT_WARMUP": f"{scenario.warmup:g}",
            "TIMESPLIT_PROGRESS": str(self._progress),
            "TIMESPLIT_PATHS": json.dumps(scenario.paths),
        }
        self.child: Child = processes.start("locust", command(scenario, host), env={**env, **own})

    def goes_on(self) -> bool:
        """Tell whether it runs, or has just ended: after the last time its progress is complete.

        Raises:
            StartError: it was killed.
        """
        goes_on, exit_code = not self._ended, self.child.exit_code
        self._ended = exit_code is not None
        # Other exit codes are the scenario's own: it may set one where it is not content with the answers.
        if exit_code is not None and exit_code < 0:
            raise self.child.start_error(f"was ended by signal {-exit_code}")
        return goes_on

    def progress(self) -> Iterator[Progress]:
        """Yield what it has told since the last call."""
        with self._progress.open("rb") as file:
            file.seek(self._told)
            news = file.read()
        complete = news[: news.rfind(b"\n") + 1]
        self._told += len(complete)
        return (Progress.from_json(json.loads(line)) for line in complete.splitlines())

    def error(self) -> TimesplitError:
        """Make the error that says why it ended without a run."""
        reason = failure(self.child.output())
        if reason:
            return ScenarioError(f"{self._scenario.locustfile}: {reason}")
        return self.child.start_error(f"ended with exit code {self.child.exit_code} before the test began")


def command(scenario: Scenario, host: str) -> list[str]:
    """Return Locust's command line."""
    options = ["--headless", "--only-summary", "--exit-code-on-error", "0", "--host", host]
    options += ["--users", str(scenario.users), "--spawn-rate", f"{scenario.spawn_rate:g}"]
    options += ["--stop-timeout", str(STOP_TIMEOUT)]
    if scenario.duration is not None:
        options += ["--run-time", f"{scenario.duration:g}s"]
    if scenario.processes > 1:
        # Locust's own port is fixed: workers of two runs at a time would meet at one master.
        port = str(free_port())
        options += ["--processes", str(scenario.processes), "--master-bind-port", port, "--master-port", port]
    file = ["-f", str(scenario.locustfile)]
    return [sys.executable, "-m", "locust", *file, *options, *scenario.user_classes]


def failure(output: str) -> str | None:
    """Return why Locust could not run a locustfile, in one line, or None where it does not say.

    Of a traceback the line of the user's own code that is nearest to the error counts, not Locust's and the
    libraries'.
    """
    lines = output.splitlines()
    if "Traceback (most recent call last):" in lines:
        frames = [found for line in lines if (found := _FRAME.match(line))]
        own = [frame for frame in frames if not _is_library(frame["file"])]
        error = next(line for line in reversed(lines) if re.match(r"[\w.]+(:|$)", line))
        where = own[-1] if own else frames[-1]
        return f"{where['file']}:{where['line']}: {error}"
    said = re.findall(r"/ERROR/(?:locust|timesplit)\S*: (?:timesplit: )?(.*)", output)
    return said[-1] if said else None


def _is_library(file: str) -> bool:
    return file.startswith(("<", sysconfig.get_path("stdlib"))) or "/site-packages/" in file
