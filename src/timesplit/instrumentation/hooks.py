"""Hooks: what was replaced in other libraries, what could not be, and the way back.

A hook is detected, never assumed: where a library has another shape than expected, the hook is left out and says
why, and everything else works.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Hook:
    """What `timesplit doctor` tells of a hook: its name, whether it is armed, and if not, why."""

    name: str
    armed: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Replaced:
    name: str
    owner: Any
    attribute: str
    original: Any  # _MISSING where the owner inherited it
    ours: Any


class Hooks:
    """The hooks of this process."""

    def __init__(self) -> None:
        self.found: dict[str, Hook] = {}
        self._replaced: list[_Replaced] = []

    def replace(self, name: str, owner: Any, attribute: str, make: Callable[[Any], Any]) -> bool:
        """Put `make(original)` in an attribute's place; tell whether that could be done.

        Args:
            name: what `doctor` calls it.
            owner: class or module.
            attribute: its function; a class method or static method is handed on as it is bound.
            make: takes the original, returns what stands in for it.
        """
        if name in self.found and self.found[name].armed:
            return True
        original = getattr(owner, attribute, None)
        if original is None:
            self.leave(name, f"{getattr(owner, '__name__', owner)} has no {attribute}")
            return False
        kept = vars(owner).get(attribute, _MISSING)
        ours = make(original)
        try:
            setattr(owner, attribute, ours)
        except (AttributeError, TypeError) as error:
            self.leave(name, str(error))
            return False
        self._replaced.append(_Replaced(name, owner, attribute, kept, ours))
        self.found[name] = Hook(name, armed=True)
        return True

    def armed(self, name: str) -> bool:
        """Tell whether a hook is armed."""
        return name in self.found and self.found[name].armed

    def leave(self, name: str, why: str) -> None:
        """Say that a hook is left out."""
        self.found[name] = Hook(name, armed=False, why=why)

    def give_back(self, name: str, why: str) -> None:
        """Take one hook back, and say why it is left out from now on."""
        for hook in [hook for hook in self._replaced if hook.name == name]:
            _restore(hook)
            self._replaced.remove(hook)
        self.leave(name, why)

    def undo(self) -> None:
        """Take all hooks back, last first."""
        for hook in reversed(self._replaced):
            _restore(hook)
        self._replaced.clear()
        self.found.clear()


def _restore(hook: _Replaced) -> None:
    if vars(hook.owner).get(hook.attribute) is not hook.ours:
        return  # somebody else has replaced it since: theirs calls ours, and ours does nothing any more
    if hook.original is _MISSING:
        delattr(hook.owner, hook.attribute)
    else:
        setattr(hook.owner, hook.attribute, hook.original)
