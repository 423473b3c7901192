import importlib
import importlib.machinery
import importlib.util
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from timesplit.instrumentation.imports import Watch


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a watch for the modules `late_one` and `late_pack.inner` has told; they lie in tmp_path."""
    (tmp_path / "late_one.py").write_text("import sys\nloader = __loader__\nspec_loader = __spec__.loader\n")
    (tmp_path / "late_pack").mkdir()
    (tmp_path / "late_pack/__init__.py").write_text("")
    (tmp_path / "late_pack/inner.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    told: list[str] = []
    watch = Watch(["late_one", "late_pack.inner", "late_broken"], told.append)
    watch.arm()
    yield told
    watch.disarm()
    assert watch not in sys.meta_path
    for name in ("late_one", "late_pack", "late_pack.inner", "late_broken"):
        sys.modules.pop(name, None)


def test_a_module_is_told_of_when_it_is_complete(told: list[str]) -> None:
    module = importlib.import_module("late_one")
    assert told == ["late_one"]
    assert importlib.import_module("late_pack.inner").value == 1
    assert told == ["late_one", "late_pack.inner"]
    importlib.reload(module)
    assert told[2:] == ["late_one"]


def test_the_module_never_sees_anything_but_its_own_loader(told: list[str]) -> None:
    module = importlib.import_module("late_one")
    assert type(module.loader) is importlib.machinery.SourceFileLoader
    assert module.__loader__ is module.loader is module.spec_loader
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.loader


def test_a_module_that_fails_to_import_is_not_told_of(told: list[str], tmp_path: Path) -> None:
    (tmp_path / "late_broken.py").write_text("raise KeyError('its own')\n")
    importlib.invalidate_caches()
    with pytest.raises(KeyError, match="its own"):
        importlib.import_module("late_broken")
    assert told == []
    assert "late_broken" not in sys.modules


def test_a_module_that_is_not_there_stays_missing(told: list[str]) -> None:
    with pytest.raises(ModuleNotFoundError, match="late_broken"):
        importlib.import_module("late_broken")


def test_looking_for_a_module_is_no_import(told: list[str]) -> None:
    spec = importlib.util.find_spec("late_one")
    assert spec is not None
    assert spec.loader is not None
    assert told == []
    assert spec.loader.get_source("late_one")  # type: ignore[attr-defined]  # what tools ask of a source loader


def test_a_loader_that_modules_share_is_not_changed(told: list[str], tmp_path: Path) -> None:
    (tmp_path / "late_one.py").unlink()
    archive = tmp_path / "late.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("late_one.py", "")
        made.writestr("late_other.py", "")
    importlib.invalidate_caches()
    sys.path.insert(0, str(archive))
    try:
        importlib.import_module("late_one")
        importlib.import_module("late_other")
    finally:
        sys.path.remove(str(archive))
        sys.modules.pop("late_other", None)
    assert told == ["late_one"]


def test_two_tools_that_ask_each_other_come_to_an_end(told: list[str]) -> None:
    class Asking:
        """Asks all finders, as other tools do."""

        @staticmethod
        def find_spec(
            name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
        ) -> importlib.machinery.ModuleSpec | None:
            others = [finder for finder in sys.meta_path if finder is not Asking]
            found = (finder.find_spec(name, path, target) for finder in others)
            return next((spec for spec in found if spec is not None), None)

    sys.meta_path.insert(0, Asking)
    try:
        importlib.import_module("late_one")
    finally:
        sys.meta_path.remove(Asking)
    assert told == ["late_one"]
