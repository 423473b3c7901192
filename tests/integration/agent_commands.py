"""Any command, started with the agent on its path, and what its workers recorded."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.truth.served import Service, serving
from timesplit.instrumentation import inject
from timesplit.lab.processes import free_port

PYTHON = sys.executable
OURS = ("TIMESPLIT", "OTEL", "PYTHON")


def plain_environment(**extra: str) -> dict[str, str]:
    """Return our environment without what would change how a Python program starts, or what it records."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | extra


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a command with the agent; of ours, nothing but its folder is on the path."""
    return inject.environment(plain_environment(TIMESPLIT_TRACES="ledger", **extra))


def run(*command: str, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command, env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def serve_command(
    command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """Start a command that serves on `{port}`, in the folder of the applications, and end it afterwards."""
    port, journals = free_port(), folder / "journals"
    used = {**environment(TIMESPLIT_JOURNAL=str(journals)), **(env or {})}
    words = [word.replace("{port}", str(port)) for word in command]
    with serving(words, folder, used, port, journals) as service:
        yield service
