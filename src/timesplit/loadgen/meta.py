"""What a run says about itself: its scenario, its process, its versions. Secrets are left out."""

import inspect
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from locust.env import Environment

from timesplit.clocks import Anchor, boot_id, read_anchor
from timesplit.errors import ScenarioError, UsageError

_WARMUP_S: Final = 5.0
_HIDDEN: Final = "…"
_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
_PACKAGES: Final = ("timesplit", "locust", "gevent", "geventhttpclient", "pyarrow")


def scenario_name(environment: Environment) -> str:
    """Return the scenario's name: TIMESPLIT_SCENARIO, else that of the locustfile or of its folder."""
    paths = getattr(environment.parsed_options, "locustfile", None) or "run"
    return os.environ.get("TIMESPLIT_SCENARIO") or Path(paths.split(",")[0]).resolve().stem


def warmup_s(model: str) -> float:
    """Return how many seconds are cut off at the start: TIMESPLIT_WARMUP, else 5 (0 for bursts).

    Raises:
        UsageError: it is no number.
    """
    given = os.environ.get("TIMESPLIT_WARMUP") or (0 if model == "bursts" else _WARMUP_S)
    try:
        return float(given)
    except ValueError:
        raise UsageError(f"TIMESPLIT_WARMUP={given}: use a number of seconds") from None


def run_meta(environment: Environment, began: Anchor) -> dict[str, Any]:
    """Return what `run.json` says when a run begins, but for its key.

    Args:
        environment: Locust's environment, its user classes chosen.
        began: clock anchor of the beginning.

    Raises:
        UsageError: TIMESPLIT_WARMUP is no number.
        ScenarioError: the scenario's TOML file is none.
    """
    classes = environment.user_classes
    model = "bursts" if any(getattr(user, "model", "") == "bursts" for user in classes) else "closed"
    scenario, about = scenario_name(environment), _about(classes)
    return {
        "scenario": scenario,
        "title": about.get("title", scenario),
        "question": about.get("question"),
        "model": model,
        "warmup_s": warmup_s(model),
        "began": asdict(began),
        "host": without_credentials(
            environment.host or next((user.host for user in classes if user.host), "")
        ),
        "user_classes": sorted(user.__name__ for user in classes),
        "command": without_secrets(sys.argv),
        "versions": versions(),
        "git_commit": _git_commit(),
        "generators": getattr(environment.runner, "worker_count", 1),
        "users": environment.runner.target_user_count if environment.runner else None,
        "stages": list(
            dict.fromkeys(stage for user in classes for stage in getattr(user, "stages", ("main",)))
        ),
        "traces": os.environ.get("TIMESPLIT_TRACES"),
    }


def host_row(
    instance: str, written: int | None, forwarded: int | None, **configuration: Any
) -> dict[str, Any]:
    """Return this process's row of `hosts/`.

    Args:
        instance: random id of this process.
        written: attempts begun; None while the run goes on.
        forwarded: of these, rows on disk.
        configuration: settings and counts that matter.
    """
    return {
        "instance": instance,
        "role": "generator",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "service": "generator",
        **asdict(read_anchor()),
        "written": written,
        "forwarded": forwarded,
        "dropped": None if written is None or forwarded is None else written - forwarded,
        "versions": json.dumps(versions()),
        "configuration": json.dumps(configuration),
    }


def versions() -> dict[str, str]:
    """Return the versions of what makes the load."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {package: version(package) for package in _PACKAGES}


def without_secrets(command: Sequence[str]) -> list[str]:
    """Return a command without the values of its secret options, and without credentials in URLs."""
    shown: list[str] = []
    hide_next = False
    for word in command:
        option, equals, _ = word.partition("=")
        secret = word.startswith("-") and bool(_SECRET.search(option))
        if hide_next:
            word = _HIDDEN
        elif secret and equals:
            word = f"{option}={_HIDDEN}"
        elif "://" in word:
            word = without_credentials(word)
        hide_next = secret and not equals
        shown.append(word)
    return shown


def without_credentials(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _about(classes: Sequence[type]) -> dict[str, Any]:
    """Return what the scenario's TOML file says; empty where the classes are of several files, or none has one."""
    files = {Path(inspect.getfile(user)).with_suffix(".toml") for user in classes}
    file = files.pop() if len(files) == 1 else None
    if file is None or not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScenarioError(f"{file}: not TOML: {error}") from None


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
