"""Work that outlives a request: jobs and background tasks, WebSockets and event streams."""

from functools import reduce
from itertools import pairwise
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis import _

from timesplit.analysis import stats
from timesplit.analysis.summary import Distribution, JobSummary, StreamSummary
from timesplit.analysis.tables import RunTables
from timesplit.schema import JOBS, STREAMS


def summarise_jobs(tables: RunTables) -> tuple[JobSummary, ...]:
    """Return what became of the work that the service accepted, by stage and kind."""
    jobs = tables.table(JOBS)
    finished, dead = _.state == "finished", _.state == "dead"
    # A queue looks after its jobs; nobody will start a background task again.
    is_open = (_.kind == "queue") & _.state.isin(["queued", "running"])
    counts = jobs.group_by("stage", "kind").aggregate(
        posted=_.count(),
        finished=finished.sum(),
        dead=dead.sum(),
        open=is_open.sum(),
        lost=(~finished & ~dead & ~is_open).sum(),
        repeated=(_.effects > 1).sum().fill_null(0),
        retried=(_.attempts > 1).sum().fill_null(0),
    )
    taken = jobs.filter(_.seen_finished.notnull()).select(
        "stage", "kind", at=_.posted, time=_.seen_finished - _.posted
    )
    turnarounds = _distributions(tables, taken, ["stage", "kind"])
    rows = tables.fetch(counts.order_by("stage", ibis.desc("kind"))).to_pylist()
    return tuple(JobSummary(**row, turnaround=turnarounds.get((row["stage"], row["kind"]))) for row in rows)


def summarise_streams(tables: RunTables) -> tuple[StreamSummary, ...]:
    """Return what streams did, as each side saw it."""
    streams = tables.table(STREAMS)
    keys = ["name", "stage", "kind", "side"]
    counts = streams.group_by(keys).aggregate(
        opened=_.count(),
        closed=(_.error.isnull() & _.closed.notnull()).sum(),
        messages=_.messages.sum(),
    )
    first = streams.filter(_.first.notnull()).select(*keys, at=_.opened, time=_.first - _.opened)
    lifetime = streams.filter(_.closed.notnull()).select(*keys, at=_.opened, time=_.closed - _.opened)
    firsts, lifetimes = _distributions(tables, first, keys), _distributions(tables, lifetime, keys)
    failures = _failures(tables, streams, keys)
    summaries = []
    for row in tables.fetch(counts.order_by(keys)).to_pylist():
        key = tuple(row[name] for name in keys)
        summaries.append(
            StreamSummary(
                **row, failures=failures.get(key, {}), first=firsts.get(key), lifetime=lifetimes.get(key)
            )
        )
    return tuple(summaries)


def _failures(
    tables: RunTables, streams: ibis.Table, keys: list[str]
) -> dict[tuple[str, ...], dict[str, int]]:
    failed = streams.filter(_.error.notnull()).group_by([*keys, "error"]).aggregate(rows=_.count())
    found: dict[tuple[str, ...], dict[str, int]] = {}
    for row in tables.fetch(failed.order_by([*keys, "error"])).to_pylist():
        found.setdefault(tuple(row[name] for name in keys), {})[row["error"]] = row["rows"]
    return found


def _distributions(
    tables: RunTables, times: ibis.Table, keys: list[str]
) -> dict[tuple[Any, ...], Distribution | None]:
    rows = tables.fetch(times.order_by([*keys, "at"]))
    at, values = rows["at"].to_numpy(), rows["time"].to_numpy()
    edges = _edges(rows.select(keys))
    return {
        tuple(rows[key][low].as_py() for key in keys): stats.distribution(at[low:high], values[low:high])
        for low, high in pairwise(edges)
    }


def _edges(keys: pa.Table) -> list[int]:
    """Return where each run of equal rows begins, and the end of the last."""
    if keys.num_rows == 0:
        return []
    changes = [pc.not_equal(column.slice(1), column.slice(0, keys.num_rows - 1)) for column in keys.columns]
    return [0, *(int(place) + 1 for place in np.flatnonzero(reduce(pc.or_, changes))), keys.num_rows]
