import os
from pathlib import Path

from timesplit.instrumentation import inject
from timesplit.instrumentation.journal import Journal


def test_the_folder_comes_first_and_once() -> None:
    env = inject.environment(
        {"PYTHONPATH": os.pathsep.join(["/a", str(inject.STARTUP), "", "/b"]), "HOME": "/h"}
    )
    assert env == {"PYTHONPATH": os.pathsep.join([str(inject.STARTUP), "/a", "/b"]), "HOME": "/h"}
    assert inject.environment(env) == env


def test_mode_and_journal_are_handed_on_where_they_are_given() -> None:
    env = inject.environment({"TIMESPLIT_TRACES": "off"}, traces="ledger", journal=Path("/j"))
    assert env["TIMESPLIT_TRACES"] == "ledger"
    assert env["TIMESPLIT_JOURNAL"] == "/j"
    assert inject.environment({"TIMESPLIT_TRACES": "off"})["TIMESPLIT_TRACES"] == "off"


def test_nothing_but_what_a_start_needs_lies_on_the_path() -> None:
    names = {path.name for path in inject.STARTUP.glob("*") if "pyc" not in path.name}
    assert names == {"__init__.py", "sitecustomize.py", "timesplit_start.py"}


def test_a_journal_says_that_something_is_armed(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    assert not inject.anything_armed(folder)
    Journal(folder, "0123456789abcdef", {}).discard()
    assert inject.anything_armed(folder)
