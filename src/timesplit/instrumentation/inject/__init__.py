"""Starts any command with the agent in it, without a change of its code: by a folder on Python's path.

Each Python program of the command, and of its children, imports `startup/sitecustomize.py` when it starts. That
waits until an ASGI server or framework is imported, and arms the agent then. The application's environment needs
nothing of ours: the modules come from their own place, and only they; a timesplit that is installed there is left
aside in favour of this one, because worker and forwarder must agree on the journal's layout.

Python does not look at PYTHONPATH under `-I` or `-E`: then there is no journal (`anything_armed`).
"""

import os
from collections.abc import Mapping
from pathlib import Path

from timesplit.instrumentation.journal import journal_folder

STARTUP = Path(__file__).with_name("startup")
NOTHING_ARMED = (
    "nothing records the service's requests: none of its processes is a Python program that serves ASGI with the "
    "agent in it (Python's -I and -E keep it out); this run has client records only"
)


def environment(
    env: Mapping[str, str], *, traces: str | None = None, journal: Path | None = None
) -> dict[str, str]:
    """Return an environment in which a command runs with the agent.

    Args:
        env: the command's own.
        traces: `TIMESPLIT_TRACES`; None leaves what `env` says.
        journal: folder in which the workers' journals appear; None leaves what `env` says, else the default one.
    """
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(STARTUP)]
    ours = {"PYTHONPATH": os.pathsep.join([str(STARTUP), *paths])}
    if traces is not None:
        ours["TIMESPLIT_TRACES"] = traces
    if journal is not None:
        ours["TIMESPLIT_JOURNAL"] = str(journal)
    return {**env, **ours}


def anything_armed(journal: Path | None = None) -> bool:
    """Tell whether a worker writes a journal: it does so from its server's start on, before the first request.

    Args:
        journal: the folder; None for the default one.
    """
    return any((journal or journal_folder()).glob("*.journal"))
