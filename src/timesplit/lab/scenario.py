"""A scenario: a locustfile, and beside it a TOML file of the same name that says how to run it."""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timesplit.errors import ScenarioError

FOLDER = Path("loadtests")
PROCESSES = ("job-worker", "service-worker")
_SIGNALS = ("KILL", "TERM")
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that the lab breaks during a run.

    Attributes:
        at: seconds after the test's start.
        process: `job-worker`, or `service-worker` for one worker of the service.
        signal: name of the signal that it gets, without SIG.
        restart: whether the lab starts it again at once; gunicorn restarts the service's workers by itself.
    """

    at: float
    process: str
    signal: str = "KILL"
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """How a locustfile is run.

    Attributes:
        name: name of the locustfile, without `.py`.
        locustfile: its path.
        title: one line.
        question: the question that it answers, one line.
        user_classes: Locust user classes to run; empty for those that the file has on by default.
        users: how many users.
        spawn_rate: users started per second.
        duration: seconds of load; None where the users end the run by themselves.
        warmup: first seconds that do not count.
        workers: workers of the service; None for what WEB_CONCURRENCY says.
        processes: processes of the generator.
        in_process: whether the lab makes the bursts of the article in process too.
        service: environment of the service.
        faults: what breaks, and when.
        paths: paths that are requested in turn, where there is no locustfile of the user's.
    """

    name: str
    locustfile: Path
    title: str = ""
    question: str = ""
    user_classes: tuple[str, ...] = ()
    users: int = 10
    spawn_rate: float = 10.0
    duration: float | None = 30.0
    warmup: float = 5.0
    workers: int | None = None
    processes: int = 1
    in_process: bool = False
    service: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    paths: tuple[str, ...] = ()


def find_scenario(name: str, folder: Path = FOLDER) -> Scenario:
    """Read the scenario of that name in `folder`, or of that locustfile where `name` is a path.

    Raises:
        ScenarioError: there is none, or its TOML file does not fit; the message lists all that is wrong.
    """
    is_path = name.endswith(".py") or "/" in name
    locustfile = Path(name) if is_path else folder / f"{name}.py"
    if not locustfile.is_file():
        raise ScenarioError(_unknown(name, locustfile if is_path else folder, is_path))
    settings = locustfile.with_suffix(".toml")
    if not settings.is_file():
        return Scenario(locustfile.stem, locustfile)
    return _parse(locustfile, settings)


def paths_scenario(paths: Sequence[str]) -> Scenario:
    """Return the scenario that requests these paths in turn.

    Raises:
        ScenarioError: one is not a path.
    """
    for path in paths:
        if not path.startswith("/"):
            raise ScenarioError(f"--path {path}: a path begins with /; the service's address goes to --host")
    return Scenario("paths", Path(__file__).parent / "locustfiles" / "paths.py", paths=tuple(paths))


def scenario_names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the scenarios in a folder; helper files begin with `_`."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as Locust writes them: `90`, `90s`, `1m30s`, `1h`.

    Raises:
        ValueError: it is none.
    """
    found = _DURATION.fullmatch(text)
    if not text or not found:
        raise ValueError(f"{text!r} is no duration; write 90s, 1m30s or 1h")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def _unknown(name: str, where: Path, is_path: bool) -> str:
    if is_path:
        return f"{where}: there is no such locustfile"
    names = scenario_names(where)
    if not names:
        return f"no scenario {name!r}: there are none in {where.absolute()}; give the path of a locustfile"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
    return f"no scenario {name!r} in {where}/; {hint}"


_Check = Callable[[Any], bool]


def _is_number(least: float, *, above: bool = False) -> _Check:
    def check(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return number and (value > least if above else value >= least)

    return check


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\n" not in value


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name.isidentifier() for name in value)


def _is_environment(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str | int | float) for item in value.values())


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


_POSITIVE = (_is_number(0, above=True), "a number above 0")
_FROM_ZERO = (_is_number(0), "a number of seconds, 0 or more")
_COUNT = (_is_count, "a whole number, 1 or more")
_FLAG = (lambda value: isinstance(value, bool), "true or false")
_LINE = (_is_text, "one line of text")

_KEYS: dict[str, tuple[_Check, str]] = {
    "title": _LINE,
    "question": _LINE,
    "user_classes": (_is_names, "a list of class names"),
    "users": _COUNT,
    "spawn_rate": _POSITIVE,
    "duration": _POSITIVE,
    "warmup": _FROM_ZERO,
    "workers": _COUNT,
    "processes": _COUNT,
    "in_process": _FLAG,
    "service": (_is_environment, "a table of environment variables"),
    "fault": (_is_tables, "tables [[fault]]"),
}
_FAULT_KEYS: dict[str, tuple[_Check, str]] = {
    "at": _FROM_ZERO,
    "process": (lambda value: value in PROCESSES, f"one of {', '.join(PROCESSES)}"),
    "signal": (lambda value: value in _SIGNALS, f"one of {', '.join(_SIGNALS)}"),
    "restart": _FLAG,
}


def _parse(locustfile: Path, settings: Path) -> Scenario:
    try:
        data = tomllib.loads(settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScenarioError(f"{settings}: not TOML: {error}") from None
    problems = _problems(data, _KEYS, "")
    faults = data.pop("fault", [])
    if _is_tables(faults):
        for number, fault in enumerate(faults, 1):
            problems += _problems(fault, _FAULT_KEYS, f"fault {number}: ", needed=("at", "process"))
    if problems:
        raise ScenarioError(f"{settings}: " + "; ".join(problems))
    data.setdefault("duration", None)
    data["user_classes"] = tuple(data.get("user_classes", ()))
    data["service"] = {name: str(value) for name, value in data.get("service", {}).items()}
    return Scenario(locustfile.stem, locustfile, faults=tuple(Fault(**fault) for fault in faults), **data)


def _problems(
    data: Mapping[str, Any], keys: Mapping[str, tuple[_Check, str]], where: str, needed: tuple[str, ...] = ()
) -> list[str]:
    missing = [f"{where}{key} is missing" for key in needed if key not in data]
    return missing + [
        f"{where}{key} = {value!r}: must be {keys[key][1]}" if key in keys else _unknown_key(where, key, keys)
        for key, value in data.items()
        if key not in keys or not keys[key][0](value)
    ]


def _unknown_key(where: str, key: str, keys: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, keys, n=1)
    return f"{where}{key} is no setting" + (f" (did you mean {close[0]}?)" if close else "")
