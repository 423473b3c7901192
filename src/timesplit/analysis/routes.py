"""Figures by route and stage, from the joined requests.

Durations are those of attempts that succeeded after the warm-up; failures are counted beside them, since a
refusal within a millisecond must not make a service look fast. Rows stay in the engine: what leaves it are
counts, and one group's durations as an array.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import ibis
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from ibis import _

from timesplit.analysis import stats
from timesplit.analysis.bursts import BurstShape, split_by_burst, summarise_bursts
from timesplit.analysis.facts import RunRecord
from timesplit.analysis.samples import SECOND_NS, UNKNOWN, Samples, part_time, spectrum, windows
from timesplit.analysis.summary import Bursts, Distribution, InProcess, PartTime, RouteSummary
from timesplit.analysis.tables import RunTables
from timesplit.analysis.tail import Thresholds, split_by_part, thresholds
from timesplit.parts import PARTS
from timesplit.schema import INPROCESS, REQUESTS

_GOOD = _.warm & _.error.isnull() & _.done.notnull()
UNFINISHED: Final = "unfinished"  # of schema.ERRORS: the run's end, not the service, cut the attempt off


def summarise_routes(tables: RunTables, record: RunRecord) -> tuple[RouteSummary, ...]:
    """Return the figures of every route and stage, in the order of the stages, the slowest route first."""
    groups = _groups(tables)
    numbered = tables.add("groups", groups.select(["stage", "route", "number"]))
    rows = tables.table(REQUESTS).inner_join(numbered, ["stage", "route"], rname="{name}_of_group")
    failures, parts, shapes = _failures(tables, rows), _parts(tables, rows), _burst_shapes(tables, rows)
    in_process = _in_process(tables)
    found: dict[int, RouteSummary] = {}
    edges: dict[int, Thresholds] = {}
    for group, samples in _samples(tables, rows, groups, record):
        number = group["number"]
        found[number] = _summarise(
            group,
            samples,
            failures=failures.get(number, {}),
            parts=parts.get(number, {}),
            shape=shapes.get(number),
            in_process=in_process.get((group["stage"], group["route"])),
        )
        if samples.warm.any():
            edges[number] = thresholds(np.sort(samples.response[samples.warm]))
    for number, split in split_by_part(tables, rows.filter(_GOOD), edges).items():
        found[number] = replace(found[number], bands=split.bands, tail=split.tail)
    summaries = list(found.values())
    order = {stage: place for place, stage in enumerate(record.facts.stages)}
    summaries.sort(
        key=lambda each: (order.get(each.stage, len(order)), each.stage, -_slowness(each), each.route)
    )
    return tuple(summaries)


def _summarise(
    group: dict[str, Any],
    samples: Samples,
    *,
    failures: dict[str, int],
    parts: dict[str, PartTime],
    shape: BurstShape | None,
    in_process: InProcess | None,
) -> RouteSummary:
    warm = samples.only(samples.warm)
    bursts = split_by_burst(warm, shape) if shape else None
    seen = warm.only(warm.span != UNKNOWN)
    burst_summary = summarise_bursts(bursts, shape) if bursts and shape else None
    unfinished = failures.pop(UNFINISHED, 0)
    return RouteSummary(
        route=group["route"],
        stage=group["stage"],
        requests=group["requests"],
        failed=sum(failures.values()),
        failures=failures,
        unfinished=unfinished,
        rate=_rate(group, burst_summary),
        response=_distribution(warm.at, warm.response, warm.burst, in_bursts=bool(bursts)),
        span=_distribution(seen.at, seen.span, seen.burst, in_bursts=bool(bursts)),
        gap=_distribution(seen.at, seen.response - seen.span, seen.burst, in_bursts=bool(bursts)),
        in_process=in_process,
        parts=parts,
        queries=group["queries"],
        upstream_calls=group["upstream_calls"],
        bursts=burst_summary,
        spectrum=spectrum(warm.response),
        span_spectrum=spectrum(seen.span),
        windows=None if bursts else windows(samples),
        bands=(),
        tail=None,
    )


def _slowness(summary: RouteSummary) -> int:
    return summary.response.p99.value_ns if summary.response else 0


def _distribution(
    at: stats.Nanoseconds, values: stats.Nanoseconds, burst: stats.Nanoseconds, *, in_bursts: bool
) -> Distribution | None:
    if not in_bursts:
        return stats.distribution(at, values)
    order = np.argsort(burst, kind="stable")
    return stats.distribution_of_bursts(np.split(values[order], np.flatnonzero(np.diff(burst[order])) + 1))


def _rate(group: dict[str, Any], bursts: Bursts | None) -> float | None:
    if bursts:
        return bursts.size * SECOND_NS / bursts.wall.p50.value_ns
    if group["first"] is None or group["last"] is None or group["last"] <= group["first"]:
        return None
    return float(group["answered"] * SECOND_NS / (group["last"] - group["first"]))


def _groups(tables: RunTables) -> pa.Table:
    rows = tables.table(REQUESTS)
    good = _.warm & _.error.isnull()
    counts = rows.group_by("stage", "route").aggregate(
        requests=_.warm.sum(),
        answered=(_.warm & _.done.notnull() & _.status.notnull()).sum(),
        first=_.intended.min(where=_.warm),
        last=_.done.max(where=_.warm),
        queries=_.query_count.mean(where=good),
        upstream_calls=_.upstream_count.mean(where=good),
    )
    groups = tables.fetch(counts.order_by("stage", "route"))
    return groups.append_column("number", pa.array(range(groups.num_rows), pa.int64()))


def _failures(tables: RunTables, rows: ibis.Table) -> dict[int, dict[str, int]]:
    failed = rows.filter(_.warm & _.error.notnull()).group_by("number", "error").aggregate(rows=_.count())
    found: dict[int, dict[str, int]] = {}
    for row in tables.fetch(failed.order_by("number", _.rows.desc(), "error")).to_pylist():
        found.setdefault(row["number"], {})[row["error"]] = row["rows"]
    return found


def _burst_shapes(tables: RunTables, rows: ibis.Table) -> dict[int, BurstShape]:
    rows = rows.filter(_.warm & _.burst.notnull())
    good = _.error.isnull() & _.done.notnull()
    bursts = rows.group_by("number", "burst").aggregate(attempts=_.count(), good=good.sum())
    at_once = _spans_at_once(tables, rows)
    found: dict[int, list[dict[str, int]]] = {}
    for row in tables.fetch(bursts.order_by("number", "burst")).to_pylist():
        found.setdefault(row["number"], []).append(row)
    return {number: _burst_shape(each, at_once.get(number)) for number, each in found.items()}


def _burst_shape(bursts: list[dict[str, int]], at_once: float | None) -> BurstShape:
    size = Counter(row["attempts"] for row in bursts).most_common(1)[0][0]
    complete = tuple(row["burst"] for row in bursts if row["good"] == row["attempts"] == size)
    return BurstShape(size=size, complete=complete, incomplete=len(bursts) - len(complete), at_once=at_once)


def _spans_at_once(tables: RunTables, rows: ibis.Table) -> dict[int, float]:
    # Time spent in spans over time from the first to the last: 1 if a worker took them one after another.
    served = rows.filter(_.matched).group_by("number", "burst", "instance")
    served = served.aggregate(spent=_.span_ns.sum(), lasted=_.ended.max() - _.started.min())
    ratio = served.group_by("number").aggregate(spent=_.spent.sum(), lasted=_.lasted.sum())
    sums = tables.fetch(ratio).to_pylist()
    return {row["number"]: row["spent"] / row["lasted"] for row in sums if row["lasted"]}


def _samples(
    tables: RunTables, rows: ibis.Table, groups: pa.Table, record: RunRecord
) -> Iterator[tuple[dict[str, Any], Samples]]:
    shifts = tables.add("shifts", record.shifts).rename(generator="instance")
    good = rows.filter(_.error.isnull() & _.done.notnull())
    good = good.left_join(shifts, "generator", rname="{name}_of_clock").select(
        "number",
        at=_.intended + _.shift.fill_null(0) - record.began,
        response=_.response_ns,
        span=_.span_ns.fill_null(UNKNOWN),
        burst=_.burst.fill_null(UNKNOWN),
        warm=_.warm,
    )
    fetched = tables.fetch(good.order_by("number", "at"))
    columns = {name: fetched[name].to_numpy() for name in fetched.column_names}
    edges = np.searchsorted(columns.pop("number"), np.arange(groups.num_rows + 1))
    for group in groups.to_pylist():
        own = slice(edges[group["number"]], edges[group["number"] + 1])
        yield group, Samples(**{name: column[own] for name, column in columns.items()})


def _parts(tables: RunTables, rows: ibis.Table) -> dict[int, dict[str, PartTime]]:
    good = rows.filter(_GOOD)
    known = tables.fetch(good.aggregate(**{part.name: good[part.column].count() for part in PARTS}))
    found: dict[int, dict[str, PartTime]] = {}
    for part in PARTS:
        if known[part.name][0].as_py():
            times = tables.fetch(good.select("number", time=good[part.column]).drop_null().order_by("number"))
            numbers, values = times["number"].to_numpy(), times["time"].to_numpy()
            for number, own in _split(numbers, values):
                found.setdefault(number, {})[part.name] = part_time(own)
    return found


def _split(
    numbers: npt.NDArray[np.int64], values: npt.NDArray[np.int64]
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    edges = np.flatnonzero(np.diff(numbers)) + 1
    for own_numbers, own in zip(np.split(numbers, edges), np.split(values, edges), strict=True):
        yield int(own_numbers[0]), own


def _in_process(tables: RunTables) -> dict[tuple[str, str], InProcess]:
    calls = tables.table(INPROCESS)
    taken = calls.select("stage", "name", "burst", time=_.done - _.started, wall=_.done - _.burst_started)
    rows = tables.fetch(taken.order_by("stage", "name", "burst", "time")).to_pylist()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["stage"], row["name"]), []).append(row)
    return {key: _in_process_of(each) for key, each in found.items()}


def _in_process_of(calls: list[dict[str, Any]]) -> InProcess:
    bursts: dict[int, list[dict[str, Any]]] = {}
    for call in calls:
        bursts.setdefault(call["burst"], []).append(call)
    times = np.sort(np.array([call["time"] for call in calls], np.int64))
    walls = np.sort(np.array([max(call["wall"] for call in burst) for burst in bursts.values()], np.int64))
    return InProcess(
        n=len(calls),
        bursts=len(bursts),
        median_ns=stats.quantile(times, 0.5),
        max_ns=int(times[-1]),
        wall_median_ns=stats.quantile(walls, 0.5),
        wall_max_ns=int(walls[-1]),
    )
