"""From a run folder to its summary: join, figures, checks, and what a reader must know beforehand."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import duckdb

from timesplit.analysis.completeness import check_completeness
from timesplit.analysis.facts import RunRecord, read_record
from timesplit.analysis.headline import write_headline
from timesplit.analysis.join import join_requests
from timesplit.analysis.routes import summarise_routes
from timesplit.analysis.summary import SUMMARY_VERSION, Completeness, Summary
from timesplit.analysis.tables import RunTables
from timesplit.analysis.work import summarise_jobs, summarise_streams
from timesplit.runfolder import RunFolder


def summarise(path: Path) -> Summary:
    """Join a run's records, write its `requests/`, and return its figures.

    Args:
        path: the run folder.

    Raises:
        RunFolderError: it is no run folder, of another schema version, or without client rows.
    """
    run = RunFolder.open(path)
    try:
        with RunTables(run) as tables:
            return _summarise(tables)
    except duckdb.Error:
        # A damaged file can have a sound footer. Then every file is read through, and those that fail left out.
        with RunTables(run, thorough=True) as tables:
            return _summarise(tables)


def _summarise(tables: RunTables) -> Summary:
    record = read_record(tables)
    others = join_requests(tables, record)
    routes, jobs = summarise_routes(tables, record), summarise_jobs(tables)
    completeness = check_completeness(tables, record, others)
    return Summary(
        summary_version=SUMMARY_VERSION,
        timesplit=version("timesplit"),
        run=record.facts,
        headline=write_headline(routes, jobs),
        notes=(*_notes(record, completeness), *tables.unreadable),
        routes=routes,
        completeness=completeness,
        jobs=jobs,
        streams=summarise_streams(tables),
        processes=record.processes,
    )


def _notes(record: RunRecord, completeness: Completeness) -> Iterator[str]:
    if record.facts.ended is None:
        yield (
            "This run was cut short: its generator did not end it, and its last seconds may be missing. "
            "The figures are of what was written."
        )
    if completeness.server_rows == 0:
        yield "There are no server records: what a trace would say, and its parts, are unknown."
    if completeness.attempts is not None and completeness.attempts != completeness.client_rows:
        yield (
            f"The generator began {completeness.attempts:,} attempts, and {completeness.client_rows:,} are "
            "recorded."
        )
    if completeness.lost_uncounted:
        yield (
            f"{completeness.lost_uncounted:,} answered requests have no server record although no worker counts "
            "them as lost: a worker was killed before it could send its last spans, or they were lost on the way."
        )
