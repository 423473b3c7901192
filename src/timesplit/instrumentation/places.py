"""Places in the code: whose a line is, the application's or a library's, and which line of a stack to name.

A stack is named by its innermost line of the application, since that is where somebody can change something;
where none is the application's, by its innermost line.
"""

import os
import sysconfig
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple


class Place(NamedTuple):
    """A line of code; `file` is empty where it is not known."""

    file: str
    line: int
    function: str


NOWHERE: Final = Place("", 0, "")
_PACKAGES: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OURS: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STANDARD: Final = tuple(
    os.path.realpath(path) + os.sep
    for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    if path
)
_HERE: Final = os.getcwd() + os.sep
_deployed: set[str] = set()  # applications that are installed as packages: their folders
_known: dict[str, bool] = {}
_MANY: Final = 10_000


def is_application(file: str) -> bool:
    """Tell whether a source file is the application's own: not the standard library's, a package's or ours."""
    found = _known.get(file)
    if found is None:
        found = _is_application(file)
        if len(_known) < _MANY:
            _known[file] = found
    return found


def deployed(file: str) -> None:
    """Learn that this file is the application's, though it lies among the packages."""
    folder = next((file.partition(mark) for mark in _PACKAGES if mark in file), None)
    if folder is None:
        return
    package = folder[0] + folder[1] + folder[2].partition(os.sep)[0] + os.sep
    if package not in _deployed and os.sep in folder[2]:
        _deployed.add(package)
        _known.clear()


def place_of(frame: FrameType | None) -> Place:
    """Return where a stack is, given its innermost frame."""
    innermost = frame
    while frame is not None:
        if is_application(frame.f_code.co_filename):
            return _place(frame)
        frame = frame.f_back
    return NOWHERE if innermost is None else _place(innermost)


def place_of_function(function: Any) -> Place:
    """Return where a function begins; NOWHERE for what has no Python code."""
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    if not isinstance(code, CodeType):
        return NOWHERE
    return place_of_code(code)


def place_of_code(code: CodeType) -> Place:
    """Return where a function's code begins."""
    return Place(shown(code.co_filename), code.co_firstlineno, short(code.co_qualname))


def shown(file: str) -> str:
    """Return a file as one knows it: from the folder in which the application runs, or from its package on."""
    for mark in _PACKAGES:
        if mark in file:
            return file.partition(mark)[2]
    return file.removeprefix(_HERE)


def short(qualified: str) -> str:
    """Return a qualified name without the functions in which it was defined."""
    return qualified.rpartition("<locals>.")[2]


def _place(frame: FrameType) -> Place:
    return Place(shown(frame.f_code.co_filename), frame.f_lineno, short(frame.f_code.co_qualname))


def _is_application(file: str) -> bool:
    if file.startswith(("<", _OURS)):
        return False
    if any(file.startswith(folder) for folder in _deployed):
        return True
    if any(mark in file for mark in _PACKAGES):
        return False
    return not os.path.realpath(file).startswith(_STANDARD)
