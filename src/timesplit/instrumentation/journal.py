"""The journal's writing end: fixed slots in a memory-mapped file, one file per worker process.

Nothing here blocks, locks or calls the system per record. Where no slot is free a record is dropped and counted.
"""

import fcntl
import itertools
import json
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from timesplit.instrumentation.layout import (
    AFTER,
    CLOSING,
    CROWD,
    CROWD_ROW,
    CROWD_ROWS,
    DONE,
    FREE,
    HEADER,
    HEADER_BYTES,
    IS_AFTER,
    IS_CROWD,
    IS_MORE,
    IS_REQUEST,
    IS_STEP,
    IS_STREAM,
    IS_TEXT,
    MAGIC,
    MORE,
    MORE_INLINE,
    OPEN,
    OPENING,
    SEGMENT,
    SEGMENTS_INLINE,
    SLOT_BYTES,
    SLOTS,
    STEP,
    STREAM,
    TEXT,
    TEXT_BYTES,
    Layout,
)
from timesplit.parts import CODES

DEAD_KEPT = 4  # journals of dead workers that wait for a forwarder: 16 MiB
LOOKED_AT = 64  # slots that a record tries before it is dropped …
LOOKED_AT_FULL = 2  # … or, where the record before it was dropped too: nobody reads the journal
MANY_TEXTS = 4000
OTHER_TEXT = 1
NO_SLOT = 0

_BEGUN, _DROPPED, _FAILED, _REFUSED, _FLIGHT, _FLIGHT_NS, _BUSY = (
    HEADER.offset(name) // 8
    for name in (
        "begun",
        "dropped",
        "failed",
        "refused",
        "in_flight",
        "in_flight_ns",
        "busy_ns",
    )
)
_ROUTE = CODES["route"]
_DOING = OPENING.offset("doing") // 8
_open, _segment = OPENING.pack_into, SEGMENT.pack_into
_EACH = len(SEGMENT.fields)
_INLINE, _IN_MORE = SEGMENTS_INLINE * _EACH, MORE_INLINE * _EACH
# By number of segments that follow: all of them are packed at once.
_closings = [
    Layout((*CLOSING.fields, *SEGMENT.fields * count)).pack_into for count in range(SEGMENTS_INLINE + 1)
]


_open_journals: set[Path] = set()  # of this process


def journal_folder() -> Path:
    """Return where journals lie: TIMESPLIT_JOURNAL, else a folder of the user's in memory."""
    named = os.environ.get("TIMESPLIT_JOURNAL")
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    return Path(named) if named else Path(memory) / f"timesplit-{os.getuid()}"


class Journal:
    """A worker's journal. Slots are numbered by their byte offset; NO_SLOT means that none was free."""

    def __init__(self, folder: Path, instance: str, about: Mapping[str, object], slots: int = SLOTS) -> None:
        """Make the file and map it.

        Args:
            folder: made with mode 0700 if it is not there.
            instance: 16 hex digits, random: process ids repeat across containers.
            about: what the forwarder cannot know by itself; written as JSON.
            slots: how many records may wait for the forwarder.

        Raises:
            OSError: the folder is not ours alone, or the file cannot be made.
        """
        _own(folder)
        _tidy(folder)
        self.instance = instance
        self.path = folder / f"{instance}.journal"
        self.pid = os.getpid()
        size = HEADER_BYTES + slots * SLOT_BYTES
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        # A lock that a fork does not inherit: a free lock means a dead worker, across containers too.
        fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _open_journals.add(self.path)
        try:
            _reserve(self._file, size)
        except OSError:
            os.close(self._file)
            _open_journals.discard(self.path)
            self.path.unlink()
            raise
        self._map = mmap.mmap(self._file, size)
        self._map[HEADER_BYTES:] = bytes(size - HEADER_BYTES)  # touched now: no page fault in a request
        self._words = memoryview(self._map).cast("q")
        self._slots = slots
        self._turns = itertools.count()
        self._texts: dict[str, int] = {}
        self._text_numbers = itertools.count(1)
        self._numbers = itertools.count(1)
        self._looked_at = LOOKED_AT
        self._head(instance, about, slots)
        self.text("other")

    def open(self, now: int, traceparent: bytes, client_span: bytes) -> tuple[int, int]:
        """Begin a request's record; return its slot and its number in this worker."""
        words = self._words
        number = next(self._numbers)
        words[_BEGUN] = number
        words[_FLIGHT] += 1
        words[_FLIGHT_NS] -= now - self._made
        at = self._take()
        if at:
            _open(self._map, at, OPEN, IS_REQUEST, number, now, traceparent, client_span, _ROUTE, now)
        return at, number

    def doing(self, at: int, part: int, since: int) -> None:
        """Note in which part an open request is."""
        if at:
            word = (at >> 3) + _DOING
            self._words[word] = part
            self._words[word + 1] = since

    def close(
        self,
        at: int,
        number: int,
        now: int,
        fields: Sequence[int],
        segments: Sequence[int],
    ) -> None:
        """Finish a request's record.

        Args:
            at: its slot, or NO_SLOT.
            number: its number.
            now: when its last work ended.
            fields: the values of CLOSING, in order.
            segments: part, text number of the label, start and end of each, one after the other; those that do not
                fit go to slots of their own.
        """
        words = self._words
        words[_FLIGHT] -= 1
        words[_FLIGHT_NS] += now - self._made
        if not at:
            return
        if len(segments) > _INLINE:
            for first in range(_INLINE, len(segments), _IN_MORE):
                self._more(number, segments[first : first + _IN_MORE])
            segments = segments[:_INLINE]
        _closings[len(segments) // _EACH](self._map, at + OPENING.size, *fields, *segments)
        words[at >> 3] = DONE

    def step(self, *fields: int) -> None:
        """Record a long step: the values of STEP after `kind`."""
        self._record(STEP, IS_STEP, fields)

    def begin_step(self, *fields: int) -> int:
        """Record a step that still runs; return its slot, for `end_step`."""
        at = self._take()
        if at:
            STEP.pack_into(self._map, at, OPEN, IS_STEP, *fields)
        return at

    def end_step(self, at: int, *fields: int) -> None:
        """Finish the record of a step that was still running."""
        if at:
            STEP.pack_into(self._map, at, OPEN, IS_STEP, *fields)
            self._words[at >> 3] = DONE

    def cancel(self, at: int) -> None:
        """Give back the slot of a record that is not needed after all."""
        if at:
            self._words[at >> 3] = FREE

    def after(self, *fields: int) -> None:
        """Record work after a response: the values of AFTER after `kind`."""
        self._record(AFTER, IS_AFTER, fields)

    def stream(self, *fields: int | bytes) -> None:
        """Record a stream that is over: the values of STREAM after `kind`."""
        self._record(STREAM, IS_STREAM, fields)

    def crowd(self, start: int, end: int, rows: Sequence[tuple[int, int]]) -> None:
        """Record how busy short steps kept the loop: (text number of the owner, ns), the busiest first."""
        at = self._take()
        if not at:
            return
        kept = rows[:CROWD_ROWS]
        for index, row in enumerate(kept):
            CROWD_ROW.pack_into(self._map, at + CROWD.size + index * CROWD_ROW.size, *row)
        CROWD.pack_into(self._map, at, OPEN, IS_CROWD, start, end, len(kept))
        self._words[at >> 3] = DONE

    def text(self, text: str) -> int:
        """Return the number of a text; 0 for none. A new one is written once, cut to what fits in a slot."""
        if not text:
            return 0
        number = self._texts.get(text)
        return self._new_text(text) if number is None else number

    def busy(self, ns: int) -> None:
        """Add to the time in steps of requests."""
        self._words[_BUSY] += ns

    def failed(self) -> None:
        """Count an error of ours."""
        self._words[_FAILED] += 1

    def refused(self) -> None:
        """Count a request that the server refused before the application ran."""
        self._words[_REFUSED] += 1

    def discard(self) -> None:
        """Forget a journal that was made before a fork: the file is the parent's."""
        self._words.release()
        self._map.close()
        os.close(self._file)
        _open_journals.discard(self.path)

    def _take(self) -> int:
        """Return a free slot, or NO_SLOT and count a drop."""
        words, slots = self._words, self._slots
        for _ in range(self._looked_at):
            # A counter's `next` is atomic: loops in several threads never look at the same slot at once.
            at = HEADER_BYTES + next(self._turns) % slots * SLOT_BYTES
            if words[at >> 3] == FREE:
                self._looked_at = LOOKED_AT
                return at
        self._looked_at = LOOKED_AT_FULL
        words[_DROPPED] += 1
        return NO_SLOT

    def _record(self, form: Layout, kind: int, fields: Sequence[int | bytes]) -> None:
        at = self._take()
        if at:
            form.pack_into(self._map, at, OPEN, kind, *fields)
            self._words[at >> 3] = DONE

    def _more(self, number: int, segments: Sequence[int]) -> None:
        at = self._take()
        if not at:
            return
        count = len(segments) // _EACH
        MORE.pack_into(self._map, at, OPEN, IS_MORE, number, count)
        for index in range(count):
            segment = segments[index * _EACH : (index + 1) * _EACH]
            _segment(self._map, at + MORE.size + index * SEGMENT.size, *segment)
        self._words[at >> 3] = DONE

    def _new_text(self, text: str) -> int:
        if len(self._texts) >= MANY_TEXTS:
            return OTHER_TEXT
        at = self._take()
        if not at:
            return OTHER_TEXT
        number = next(self._text_numbers)
        data = text.encode("utf-8", "replace")[:TEXT_BYTES]
        TEXT.pack_into(self._map, at, OPEN, IS_TEXT, number, len(data))
        self._map[at + TEXT.size : at + TEXT.size + len(data)] = data
        self._words[at >> 3] = DONE
        self._texts[text] = number
        return number

    def _head(self, instance: str, about: Mapping[str, object], slots: int) -> None:
        self._made = monotonic = time.monotonic_ns()
        utc = time.time_ns()
        words = json.dumps(about).encode()[:3072]
        HEADER.pack_into(
            self._map,
            0,
            b"",
            slots,
            self.pid,
            monotonic,
            utc,
            instance.encode(),
            0,
            0,
            0,
            0,
            0,
            0,
            monotonic,
            0,
            words,
        )
        self._map[: len(MAGIC)] = MAGIC  # last: a reader that sees it sees a whole header


def _reserve(file: int, size: int) -> None:
    """Give a file its size and its memory: a page that is not to be had kills a process that touches it.

    Raises:
        OSError: there is not enough.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _tidy(folder: Path) -> None:
    """Remove the journals of dead workers, but for the last ones: a forwarder that is there has them open already."""
    dead = [path for path in folder.glob("*.journal") if path not in _open_journals and _is_dead(path)]
    for path in sorted(dead, key=_made_at)[:-DEAD_KEPT]:
        path.unlink(missing_ok=True)


def _is_dead(path: Path) -> bool:
    # Never of a journal of this process: closing it here would give up the lock on it.
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _made_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _own(folder: Path) -> None:
    """Make the folder, and refuse one that others could write to or that is a link.

    Raises:
        PermissionError: it is not a folder of this user's alone.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(
            f"{folder}: not a folder that only this user can write to; set TIMESPLIT_JOURNAL"
        )
