import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from timesplit.instrumentation.journal import DEAD_KEPT, Journal

DIES = """
import sys
from pathlib import Path
from timesplit.instrumentation.journal import Journal
Journal(Path(sys.argv[1]), sys.argv[2], {}, slots=4)
"""
TAKES = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


def test_journals_of_dead_workers_do_not_pile_up(tmp_path: Path) -> None:
    dead = [f"{number:016x}" for number in range(DEAD_KEPT + 3)]
    alive = Journal(tmp_path, "a" * 16, {}, slots=4)
    for number, instance in enumerate(dead):
        Journal(tmp_path, instance, {}, slots=4).discard()
        os.utime(tmp_path / f"{instance}.journal", (number, number))
    newest = Journal(tmp_path, "b" * 16, {}, slots=4)
    assert names(tmp_path) == {"a" * 16, "b" * 16, *dead[-DEAD_KEPT:]}
    alive.discard()
    newest.discard()


def test_a_journal_keeps_its_lock_when_others_are_made(tmp_path: Path) -> None:
    mine = Journal(tmp_path, "a" * 16, {}, slots=4)
    command = [sys.executable, "-c", DIES, str(tmp_path)]
    for number in range(DEAD_KEPT + 2):
        subprocess.run([*command, f"{number:016x}"], check=True)
    Journal(tmp_path, "b" * 16, {}, slots=4).discard()
    assert "a" * 16 in names(tmp_path)
    asked = subprocess.run([sys.executable, "-c", TAKES, str(mine.path)], capture_output=True, check=False)
    assert asked.returncode != 0
    mine.discard()


def test_no_memory_is_an_error_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Journal(tmp_path, "a" * 16, {}, slots=4)
    assert names(tmp_path) == set()
