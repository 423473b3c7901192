"""The journal's reading end: takes finished records out of a worker's slots, as arrays, and frees the slots.

Nothing here runs per request in Python: a batch of some thousand slots is decoded by numpy at once.
"""

import fcntl
import json
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from struct import calcsize
from typing import Any, Final

import numpy as np
import numpy.typing as npt

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
    STEP,
    STREAM,
    TEXT,
    Layout,
)

Records = npt.NDArray[Any]  # structured: the fields of a layout


def dtype(*layouts: Layout, inner: tuple[str, Layout, int] | None = None) -> np.dtype[Any]:
    """Return the numpy type of a slot.

    Args:
        layouts: that it has, one after the other.
        inner: name, layout and number of the records that follow in it.
    """
    names: list[str] = []
    formats: list[Any] = []
    offsets: list[int] = []
    at = 0
    for layout in layouts:
        for name, form in layout.fields:
            names.append(name)
            formats.append(f"S{form[:-1]}" if form.endswith("s") else "<i8")
            offsets.append(at)
            at += calcsize("=" + form)
    if inner:
        name, layout, count = inner
        names.append(name)
        formats.append((np.dtype([(field, "<i8") for field, _ in layout.fields]), (count,)))
        offsets.append(at)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": SLOT_BYTES})


_STATES: Final = dtype(Layout(OPENING.fields[:2]))
_REQUEST: Final = dtype(OPENING, CLOSING, inner=("segment", SEGMENT, SEGMENTS_INLINE))
_KINDS: Final = {  # in the order in which a Batch has them
    IS_MORE: dtype(MORE, inner=("segment", SEGMENT, MORE_INLINE)),
    IS_STEP: dtype(STEP),
    IS_AFTER: dtype(AFTER),
    IS_STREAM: dtype(STREAM),
    IS_CROWD: dtype(CROWD, inner=("row", CROWD_ROW, CROWD_ROWS)),
}


@dataclass(frozen=True, slots=True)
class Worker:
    """Whose journal it is.

    Attributes:
        instance: 16 hex digits.
        monotonic, utc: clock anchor in ns.
        about: what the worker says of itself: host, service, versions, configuration, hooks.
    """

    instance: str
    pid: int
    monotonic: int
    utc: int
    about: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """What was taken out at one time; each array is a copy. Texts are looked up by number in `JournalReader.texts`."""

    requests: Records
    more: Records
    steps: Records
    after: Records
    streams: Records
    crowd: Records


@dataclass(slots=True)
class Counts:
    """The worker's own counters, as last read."""

    begun: int = 0
    dropped: int = 0
    failed: int = 0
    refused: int = 0
    taken: int = field(default=0)


class JournalReader:
    """One worker's journal, open for reading and for freeing slots."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            ValueError: it is no journal, or of another layout; or its worker has not yet finished its header.
            OSError: it cannot be opened.
        """
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        self._map = mmap.mmap(self._file, 0)
        head = dict(zip((name for name, _ in HEADER.fields), HEADER.unpack_from(self._map, 0), strict=True))
        if head["magic"] != MAGIC:
            self.close()
            raise ValueError(f"{path}: not a journal that this timesplit can read")
        self.worker = Worker(
            head["instance"].decode(), head["pid"], head["monotonic"], head["utc"], _about(head["about"])
        )
        self._slots = head["slots"]
        self.texts: dict[int, str] = {0: ""}
        self.counts = Counts()

    def take(self) -> Batch:
        """Take all finished records, and free their slots."""
        states = self._view(_STATES)
        done = np.flatnonzero(states["state"] == DONE)
        kinds = states["kind"][done]
        self._learn(done[kinds == IS_TEXT])
        batch = Batch(
            self._view(_REQUEST)[done[kinds == IS_REQUEST]],
            *(self._view(form)[done[kinds == kind]] for kind, form in _KINDS.items()),
        )
        states["state"][done] = FREE  # last: from here on the worker may write there
        self._count(len(batch.requests))
        return batch

    def open_requests(self) -> Records:
        """Return the slots of requests under way: of a dead worker, those that died with it."""
        states = self._view(_STATES)
        under_way = (states["state"] == OPEN) & (states["kind"] == IS_REQUEST)
        return self._view(_REQUEST)[np.flatnonzero(under_way)]

    def is_dead(self) -> bool:
        """Tell whether the worker has ended: its lock on the file is free."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        """Unmap and close; the file stays."""
        self._map.close()
        os.close(self._file)

    def _view(self, kind: np.dtype[Any]) -> Records:
        return np.frombuffer(self._map, kind, self._slots, HEADER_BYTES)

    def _learn(self, slots: npt.NDArray[np.intp]) -> None:
        for slot in slots.tolist():  # some texts per route, once
            at = HEADER_BYTES + slot * SLOT_BYTES
            _, _, number, length = TEXT.unpack_from(self._map, at)
            self.texts[number] = self._map[at + TEXT.size : at + TEXT.size + length].decode(
                "utf-8", "replace"
            )

    def _count(self, taken: int) -> None:
        head = dict(zip((name for name, _ in HEADER.fields), HEADER.unpack_from(self._map, 0), strict=True))
        counts = self.counts
        counts.begun, counts.dropped = head["begun"], head["dropped"]
        counts.failed, counts.refused = head["failed"], head["refused"]
        counts.taken += taken


def _about(data: bytes) -> dict[str, Any]:
    try:
        about = json.loads(data.rstrip(b"\0"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
