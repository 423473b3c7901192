"""Who owns the tail: response times split by part, in bands of percentiles, exactly.

Means are conditional on the response time (never percentiles of parts: those do not add up), so what holds of each
request holds of every band: the parts sum to the whole. The engine sums, whatever the number of requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ibis
import pyarrow as pa
from ibis import _

from timesplit.analysis.stats import Nanoseconds, quantile
from timesplit.analysis.summary import Band, Tail
from timesplit.analysis.tables import RunTables
from timesplit.parts import PARTS

EDGES: Final = (0.5, 0.9, 0.99, 0.999)
TAIL: Final = 0.99
ORDINARY: Final = (0.45, 0.55)
ENOUGH: Final = 100  # requests from which on there is one at or above p99
UNATTRIBUTED: Final = "unattributed"
_THRESHOLDS: Final = (*EDGES, *ORDINARY)

Thresholds = dict[float, int]


@dataclass(frozen=True, slots=True)
class Split:
    """Where the time of a route's requests went, by how long they took."""

    bands: tuple[Band, ...]
    tail: Tail | None


def thresholds(ordered: Nanoseconds) -> Thresholds:
    """Return the response times at which bands begin.

    Args:
        ordered: response times of a group, ascending, at least one.
    """
    return {p: quantile(ordered, p) for p in _THRESHOLDS}


def split_by_part(tables: RunTables, rows: ibis.Table, groups: Mapping[int, Thresholds]) -> dict[int, Split]:
    """Split the response times of each group.

    Args:
        tables: of the run.
        rows: joined requests that count, with the `number` of their group.
        groups: by number.
    """
    if not groups:
        return {}
    marked = _marked(tables, rows, groups)
    sums = marked.group_by("number", "band", "slow", "ordinary").aggregate(
        n=_.count(), response=_.response_ns.sum(), **{part.name: marked[part.column].sum() for part in PARTS}
    )
    found: dict[int, list[dict[str, Any]]] = {}
    for row in tables.fetch(sums).to_pylist():
        found.setdefault(row["number"], []).append(row)
    culprits = _culprits(tables, marked)
    return {
        number: Split(tuple(_bands(cells)), _tail(cells, culprits.get(number)))
        for number, cells in found.items()
    }


def _marked(tables: RunTables, rows: ibis.Table, groups: Mapping[int, Thresholds]) -> ibis.Table:
    """Say of each request in which band it is, and whether it is one of the slow or of the ordinary ones."""
    columns = {f"at_{place}": [each[p] for each in groups.values()] for place, p in enumerate(_THRESHOLDS)}
    edges = tables.add("edges", pa.table({"number": list(groups), **columns}))
    marked = rows.inner_join(edges, "number", rname="{name}_of_edges")
    at = [marked[f"at_{place}"] for place in range(len(_THRESHOLDS))]
    band = sum((marked.response_ns >= edge).cast("int64") for edge in at[: len(EDGES)])
    low, high = at[len(EDGES) :]
    return marked.mutate(
        band=band,
        slow=_.response_ns >= at[EDGES.index(TAIL)],
        ordinary=_.response_ns.between(low, high),
    )


def _culprits(tables: RunTables, marked: ibis.Table) -> dict[int, tuple[str, int]]:
    """Return for each group the place in the code that cost its slow requests most, and what it cost in all."""
    costs = (
        marked.filter(_.slow & _.culprit.notnull())
        .group_by("number", "culprit")
        .aggregate(cost=_.culprit_ns.sum())
    )
    rows = tables.fetch(costs.order_by("number", "cost")).to_pylist()
    return {row["number"]: (row["culprit"], row["cost"]) for row in rows}


def _bands(cells: list[dict[str, Any]]) -> list[Band]:
    found = []
    for place, (low, high) in enumerate(zip((0.0, *EDGES), (*EDGES, 1.0), strict=True)):
        n, means = _means([cell for cell in cells if cell["band"] == place])
        if n:
            found.append(Band(low, high, n, sum(means.values()), means))
    return found


def _tail(cells: list[dict[str, Any]], culprit: tuple[str, int] | None) -> Tail | None:
    if sum(cell["n"] for cell in cells) < ENOUGH:
        return None
    n, slow = _means([cell for cell in cells if cell["slow"]])
    ordinary_n, ordinary = _means([cell for cell in cells if cell["ordinary"]])
    names = {**slow, **ordinary}
    excess = {name: slow.get(name, 0) - ordinary.get(name, 0) for name in names}
    by_size = dict(sorted(excess.items(), key=lambda item: -item[1]))
    owner = next(iter(by_size))
    name, cost = culprit or (None, 0)
    return Tail(
        n=n,
        ordinary_n=ordinary_n,
        excess_ns=sum(excess.values()),
        parts_ns=by_size,
        owner=owner,
        slow_ns=slow,
        culprit=name,
        culprit_ns=round(cost / n),
    )


def _means(cells: list[dict[str, Any]]) -> tuple[int, dict[str, int]]:
    """Return how many requests there are, and their mean time by part; what no part tells is unattributed."""
    n = sum(cell["n"] for cell in cells)
    if n == 0:
        return 0, {}
    sums = {part.name: sum(cell[part.name] or 0 for cell in cells) for part in PARTS}
    rest = sum(cell["response"] for cell in cells) - sum(sums.values())
    sums[UNATTRIBUTED] += rest
    return n, {name: round(total / n) for name, total in sums.items() if total}
