"""The `timesplit` command as a user types it, and what comes of it."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "TIMESPLIT_ACCEPTANCE"


class Lab:
    """Starts `timesplit` in a project folder, and knows the processes that came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = secrets.token_hex(8)
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command."""
        command = subprocess.Popen(
            [sys.executable, "-m", "timesplit.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, MARK: self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(command)
        return command

    def run(self, *arguments: str, seconds: float = 90) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = self.start(*arguments)
        out, err = command.communicate(timeout=seconds)
        return subprocess.CompletedProcess(arguments, command.returncode, out, err)

    def processes(self) -> list[psutil.Process]:
        """Return all processes that descend from its commands, whoever their parent is now."""
        return [process for process in psutil.process_iter() if self._is_mine(process)]

    def wait_until_gone(self, seconds: float = 15) -> None:
        """Fail if any of them is left after that time."""
        wait_for(lambda: not self.processes(), seconds, lambda: f"left over: {self.processes()}")

    def kill(self) -> None:
        """End whatever a failed test has left."""
        for command in self._started:
            command.kill()
            command.communicate()
        with suppress(AssertionError):
            self.wait_until_gone()
        for process in self.processes():
            process.kill()

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            # Servers that show a title as their command line write it over their environment.
            marked: bool = process.environ().get(MARK) == self._mark or process.cwd().startswith(
                str(self.folder)
            )
            return marked and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def wait_for(condition: Callable[[], object], seconds: float, told: Callable[[], str]) -> None:
    """Wait until the condition holds, or fail with what `told` says."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)
