"""Tells when modules have been imported, so that hooks can be armed in libraries that come later.

A finder that finds nothing itself: it lets the others find the module, and puts itself between the import system
and the module's loader just long enough to know when the module is complete.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Watch(MetaPathFinder):
    """A finder for `sys.meta_path` that tells of modules once they are imported."""

    def __init__(self, names: Iterable[str], imported: Callable[[str], None]) -> None:
        """Prepare; nothing is told before `arm`.

        Args:
            names: the modules.
            imported: told a module's name once it is complete. What it raises is the importer's: guard it.
        """
        self.names = set(names)
        self._imported = imported
        self._asked: set[str] = set()

    def arm(self) -> None:
        """Begin to tell."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def disarm(self) -> None:
        """Leave no trace."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find what the other finders find, to be told of its import."""
        if name not in self.names or name in self._asked:
            return None
        self._asked.add(name)  # another tool's finder may ask all finders too, this one among them
        try:
            spec = self._found(name, path, target)
        finally:
            self._asked.discard(name)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Between(spec.loader, self._imported)
        return spec

    def _found(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None:
                return spec
        return None


class _Between(Loader):
    """A module's loader, that tells when the module is complete."""

    def __init__(self, loader: Any, imported: Callable[[str], None]) -> None:
        self._loader = loader
        self._imported = imported

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        # Taken out first: the module's own code, and all who ask later, see its real loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._imported(module.__name__)
