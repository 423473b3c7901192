"""Whether the records account for everything that happened: counts, and a reason for each missing partner."""

import ibis
from ibis import _

from timesplit.analysis.facts import RunRecord
from timesplit.analysis.summary import Completeness, Process
from timesplit.analysis.tables import RunTables
from timesplit.schema import REQUESTS, SERVER


def check_completeness(tables: RunTables, record: RunRecord, others: dict[str, int]) -> Completeness:
    """Count what is there and what is missing, warm-up included.

    Args:
        tables: of the run; `requests/` must be written.
        record: what the run says of itself.
        others: the server's rows that have no place in `requests/`, by reason.
    """
    rows = tables.table(REQUESTS)
    answered = _.done.notnull() & _.status.notnull()
    counts = tables.fetch(
        rows.aggregate(rows=_.count(), answered=answered.sum(), matched=_.matched.sum())
    ).to_pylist()[0]
    missing = rows.filter(_.reason.notnull()).group_by("reason").aggregate(rows=_.count())
    unmatched = _counts(tables, missing.order_by("reason"))
    attempts = _total(record.processes, "generator", "written")
    dropped = _total(record.processes, "worker", "dropped")
    uncounted = max(0, unmatched.get("lost", 0) - (dropped or 0))
    return Completeness(
        attempts=attempts,
        client_rows=counts["rows"],
        answered=counts["answered"],
        server_rows=tables.fetch(tables.table(SERVER).aggregate(rows=_.count()))["rows"][0].as_py(),
        matched=counts["matched"],
        unmatched=unmatched,
        server_unmatched=others,
        spans_made=_total(record.processes, "worker", "written"),
        spans_arrived=_total(record.processes, "worker", "forwarded"),
        spans_dropped=dropped,
        lost_uncounted=uncounted,
        is_complete=attempts in (None, counts["rows"]) and uncounted == 0 and not tables.unreadable,
    )


def _counts(tables: RunTables, by_reason: ibis.Table) -> dict[str, int]:
    return {row["reason"]: row["rows"] for row in tables.fetch(by_reason).to_pylist()}


def _total(processes: tuple[Process, ...], role: str, field: str) -> int | None:
    counts = [getattr(process, field) for process in processes if process.role == role]
    return None if not counts or None in counts else sum(counts)
