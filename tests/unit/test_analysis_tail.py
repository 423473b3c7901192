"""Who owns the tail, on requests whose parts are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from timesplit.analysis.stats import Nanoseconds
from timesplit.analysis.summary import Tail
from timesplit.analysis.tables import RunTables
from timesplit.analysis.tail import Split, split_by_part, thresholds
from timesplit.parts import PARTS
from timesplit.runfolder import RunFolder

MS = 1_000_000
Parts = dict[str, Nanoseconds]


def requests(count: int = 1000) -> Parts:
    """Requests of about 1 ms route and 5 ms query, of which one in fifty waits 200 ms for the loop."""
    random = np.random.default_rng(7)
    route = random.normal(MS, MS / 100, count).astype(np.int64)
    query = random.normal(5 * MS, MS / 10, count).astype(np.int64)
    return {"route": route, "query": query, "loop": np.where(np.arange(count) % 50 == 7, 200 * MS, 0)}


def split(tmp_path: Path, parts: Parts, response: Nanoseconds, **columns: Any) -> Split:
    """Split one group of requests."""
    run = RunFolder.create(tmp_path / "runs", "x", b"12345678")
    run.write_meta({})
    unknown = pa.nulls(len(response), pa.int64())
    table: dict[str, Any] = {part.column: parts.get(part.name, unknown) for part in PARTS}
    table |= {"number": np.zeros(len(response), np.int64), "response_ns": response}
    table |= {"culprit": pa.nulls(len(response), pa.string()), "culprit_ns": unknown} | columns
    with RunTables(run) as tables:
        rows = tables.add("rows", pa.table(table))
        return split_by_part(tables, rows, {0: thresholds(np.sort(response))})[0]


def tail(found: Split) -> Tail:
    """Its tail, which must be there."""
    assert found.tail is not None
    return found.tail


def test_the_part_that_makes_the_slow_ones_slow_owns_the_tail(tmp_path: Path) -> None:
    parts = requests()
    slow = parts["loop"] > 0
    found = tail(
        split(
            tmp_path,
            parts,
            np.sum(list(parts.values()), axis=0),
            culprit=pa.array(["bad.py:12 bad" if each else None for each in slow.tolist()], pa.string()),
            culprit_ns=pa.array(np.full(1000, 190 * MS), mask=~slow),
        )
    )
    assert (found.n, found.owner, found.culprit) == (11, "loop", "bad.py:12 bad")
    assert found.parts_ns["loop"] == 200 * MS
    assert found.culprit_ns == 190 * MS
    assert sum(found.parts_ns.values()) == found.excess_ns


def test_what_no_part_tells_is_unattributed(tmp_path: Path) -> None:
    parts = requests()
    response = np.sum(list(parts.values()), axis=0)
    del parts["loop"]
    assert tail(split(tmp_path, parts, response)).owner == "unattributed"


def test_parts_of_each_band_add_up_and_no_request_is_left_out(tmp_path: Path) -> None:
    parts = requests()
    response = np.sum(list(parts.values()), axis=0) + 5
    bands = split(tmp_path, parts, response).bands
    assert sum(band.n for band in bands) == 1000
    for band in bands:
        assert sum(band.parts_ns.values()) == band.response_ns
        assert band.parts_ns["unattributed"] == 5
    assert sum(band.n * band.response_ns for band in bands) == pytest.approx(int(response.sum()), abs=5000)


def test_bands_are_ordered_by_response_time(tmp_path: Path) -> None:
    parts = requests()
    bands = split(tmp_path, parts, np.sum(list(parts.values()), axis=0)).bands
    assert [(band.low, band.high) for band in bands] == [
        (0, 0.5),
        (0.5, 0.9),
        (0.9, 0.99),
        (0.99, 0.999),
        (0.999, 1),
    ]
    assert [band.parts_ns.get("loop", 0) for band in bands[:2]] == [0, 0]
    assert bands[3].parts_ns["loop"] == 200 * MS


def test_too_few_requests_have_bands_but_no_tail(tmp_path: Path) -> None:
    parts = requests(99)
    found = split(tmp_path, parts, np.sum(list(parts.values()), axis=0))
    assert found.tail is None
    assert found.bands
