"""A plain reader of journals, for tests: every record of a worker, by its layout, nothing freed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timesplit.instrumentation import layout
from timesplit.instrumentation.layout import (
    CLOSING,
    CROWD,
    CROWD_ROW,
    DONE,
    ENDED_BY,
    FREE,
    HEADER,
    HEADER_BYTES,
    IS_CROWD,
    IS_MORE,
    IS_REQUEST,
    IS_TEXT,
    MORE,
    MORE_INLINE,
    OPEN,
    OPENING,
    SEGMENT,
    SEGMENTS_AT,
    SEGMENTS_INLINE,
    SLOT_BYTES,
    TEXT,
    UNKNOWN,
    Layout,
)
from timesplit.parts import CODES, SERVER_PARTS

PART_NAMES = {code: name for name, code in CODES.items()}
# Fields that are numbers of texts; a reader gives the text.
_TEXTS = {"route", "method", "other", "owner", "file", "function", "label", "culprit", "name"}


@dataclass(frozen=True)
class Segment:
    """A stretch of a request's time, in ns."""

    part: str
    label: str
    start: int
    end: int


@dataclass
class Account:
    """A request's record, done or still open.

    Attributes:
        facts: all fields of the slot by name, texts resolved; those of CLOSING only where `done`.
        parts: nanoseconds by part; None where unknown. Empty while open.
    """

    done: bool
    facts: dict[str, Any]
    parts: dict[str, int | None] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        """Return a field of the record."""
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            raise AttributeError(name) from None

    def ms(self, part: str) -> float:
        """Return a part in milliseconds; 0 where unknown."""
        return (self.parts[part] or 0) / 1e6

    @property
    def total(self) -> int:
        """Sum of the known parts, in ns."""
        return sum(ns for ns in self.parts.values() if ns is not None)

    def within(self, start: int, end: int) -> dict[str, float]:
        """Return the parts' milliseconds between two instants, those that are there."""
        found: dict[str, float] = {}
        for segment in self.segments:
            ns = min(segment.end, end) - max(segment.start, start)
            if ns > 0:
                found[segment.part] = found.get(segment.part, 0) + ns / 1e6
        return found

    def longest(self, part: str) -> Segment:
        """Return the longest segment of a part."""
        return max((s for s in self.segments if s.part == part), key=lambda s: s.end - s.start)

    @property
    def begin(self) -> int:
        """Where the parts begin: when the request arrived, or, unknown, its first step."""
        return int(self.started if self.arrived == UNKNOWN else self.arrived)


@dataclass
class Worker:
    """A worker's journal.

    Attributes:
        header: fields of the header, `about` among them as an object.
        requests: accounts in order of their number, open ones among them.
        records: the other records by kind ("step", "after", "crowd", …), fields by name, texts resolved.
    """

    header: dict[str, Any]
    requests: list[Account]
    records: dict[str, list[dict[str, Any]]]


def read_workers(folder: Path) -> list[Worker]:
    """Read all journals of a folder."""
    return [read_worker(path) for path in sorted(folder.glob("*.journal"))]


def read_worker(path: Path) -> Worker:
    """Read a journal."""
    data = path.read_bytes()
    header = _fields(HEADER, data, 0, {})
    header["about"] = json.loads(header["about"].rstrip(b"\0") or b"{}")
    slots = [at for at in range(HEADER_BYTES, len(data), SLOT_BYTES) if _word(data, at) != FREE]
    texts = {0: ""}
    for at in slots:
        if _word(data, at + 8) == IS_TEXT and _word(data, at) == DONE:
            found = _fields(TEXT, data, at, {})
            start = at + TEXT.size
            texts[found["number"]] = data[start : start + found["length"]].decode()
    more = _more(data, slots, texts)
    requests = [_account(data, at, texts, more) for at in slots if _word(data, at + 8) == IS_REQUEST]
    requests.sort(key=lambda account: account.number)
    records: dict[str, list[dict[str, Any]]] = {}
    for code, (name, form) in _plain_kinds().items():
        found_here = [at for at in slots if _word(data, at + 8) == code]
        records[name] = [_fields(form, data, at, texts) for at in found_here]
    records["crowd"] = [_crowd(data, at, texts) for at in slots if _word(data, at + 8) == IS_CROWD]
    return Worker(header, requests, records)


def _plain_kinds() -> dict[int, tuple[str, Layout]]:
    """Every kind with a fixed layout: IS_STEP goes with STEP, and so on."""
    special = {IS_REQUEST, IS_MORE, IS_TEXT, IS_CROWD}
    return {
        code: (name[3:].lower(), getattr(layout, name[3:]))
        for name, code in vars(layout).items()
        if name.startswith("IS_") and code not in special
    }


def _crowd(data: bytes, at: int, texts: dict[int, str]) -> dict[str, Any]:
    found = _fields(CROWD, data, at, texts)
    rows = [
        _fields(CROWD_ROW, data, at + CROWD.size + n * CROWD_ROW.size, texts) for n in range(found["rows"])
    ]
    return {**found, "rows": {row["owner"]: row["busy_ns"] for row in rows}}


def _account(data: bytes, at: int, texts: dict[int, str], more: dict[int, list[Segment]]) -> Account:
    facts = _fields(OPENING, data, at, texts)
    facts["traceparent"] = facts["traceparent"].rstrip(b"\0").decode()
    facts["client_span"] = facts["client_span"].rstrip(b"\0").decode()
    facts["doing"] = PART_NAMES.get(facts["doing"], "")
    if facts["state"] == OPEN:
        return Account(False, facts)
    facts |= _fields(CLOSING, data, at + OPENING.size, texts)
    facts["ended_by"] = ENDED_BY[facts["ended_by"]]
    count = facts["segments"]
    segments = _segments(data, at + SEGMENTS_AT, min(count, SEGMENTS_INLINE), texts)
    segments += sorted(more.get(facts["number"], []), key=lambda segment: segment.start)
    parts = {part.name: facts.pop(part.column) for part in SERVER_PARTS}
    known = {name: None if ns == UNKNOWN else ns for name, ns in parts.items()}
    return Account(True, facts, known, segments)


def _more(data: bytes, slots: list[int], texts: dict[int, str]) -> dict[int, list[Segment]]:
    found: dict[int, list[Segment]] = {}
    for at in slots:
        if _word(data, at + 8) == IS_MORE and _word(data, at) == DONE:
            facts = _fields(MORE, data, at, texts)
            count = min(facts["segments"], MORE_INLINE)
            found.setdefault(facts["number"], []).extend(_segments(data, at + MORE.size, count, texts))
    return found


def _segments(data: bytes, at: int, count: int, texts: dict[int, str]) -> list[Segment]:
    found = []
    for index in range(count):
        part, label, start, end = SEGMENT.unpack_from(data, at + index * SEGMENT.size)
        found.append(Segment(PART_NAMES[part], texts.get(label, "?"), start, end))
    return found


def _fields(form: Layout, data: bytes, at: int, texts: dict[int, str]) -> dict[str, Any]:
    values = form.unpack_from(data, at)
    return {
        name: texts.get(value, "?") if name in _TEXTS and texts else value
        for (name, _), value in zip(form.fields, values, strict=True)
    }


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little", signed=True)
