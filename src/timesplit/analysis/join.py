"""Client rows and server rows become joined requests: each attempt with what the service says of it.

A server record belongs to the attempt whose span it names: in `tracestate`, which survives proxies with spans
of their own, else as its parent. Of several records of one attempt a direct child of the client's span counts
before others, and of those the last to end, since the client's answer came from it.
"""

from typing import Final

import ibis
import pyarrow as pa
from ibis import _

from timesplit.analysis.facts import RunRecord
from timesplit.analysis.tables import RunTables
from timesplit.errors import RunFolderError
from timesplit.runfolder import TableWriter
from timesplit.schema import CLIENT, REQUESTS, SERVER

MAX_NAMES: Final = 1000  # distinct request names; the routes of all others are `other`
OTHER: Final = "other"
# A failed attempt has no end, and the lab notes a fault to within its polling: a connection that is reset after it
# was sent this long before a worker's death, or just after it, is charged to that.
KILL_REACH_NS: Final = 10_000_000_000
KILL_SLACK_NS: Final = 500_000_000
_UNANSWERED: Final = ("refused", "reset", "timeout", "unfinished")


def join_requests(tables: RunTables, record: RunRecord) -> dict[str, int]:
    """Write the table `requests/` of a run, in place of one that is there.

    Returns:
        The server's rows that have no place in it, counted by reason.

    Raises:
        RunFolderError: there is no client row to join.
    """
    client, shifts = tables.table(CLIENT), tables.add("shifts", record.shifts)
    records = tables.define("records", server_records(tables.table(SERVER), shifts))
    seconds = tables.add("seconds", tables.fetch(second_records(records)))
    attempts = tables.define("attempts", matched_attempts(client, records, seconds, shifts))
    names = tables.fetch(routes_of_names(attempts))
    if names.num_rows == 0:
        raise RunFolderError(
            f"{tables.run.path}: no client rows, so there is nothing to report; "
            "the generator was stopped before its first request, or its files are gone"
        )
    rows = requests(attempts, tables.add("names", names), record, traced=_is_traced(names, record))
    tables.run.clear(REQUESTS)
    writer = TableWriter(tables.run.path, REQUESTS, "report")
    for piece in tables.stream(rows):
        writer.write(piece)
    others = tables.fetch(unmatched_records(client, records, seconds))
    return dict(zip(*(others[name].to_pylist() for name in ("reason", "rows")), strict=True))


def server_records(server: ibis.Table, shifts: ibis.Table) -> ibis.Table:
    """Return the server's rows with the attempt that each names, and its times on the run's clock.

    Columns added: `attempt`, `started_at`, `ended_at`.

    Args:
        server: the table.
        shifts: what brings each process's stamps to the run's clock.
    """
    server = server.left_join(shifts, "instance", rname="{name}_of_clock")
    return server.mutate(
        attempt=ibis.coalesce(_.client_span_id, _.parent_span_id),
        started_at=_.started + _.shift.fill_null(0),
        ended_at=_.ended + _.shift.fill_null(0),
    ).drop("instance_of_clock", "shift")


def second_records(records: ibis.Table) -> ibis.Table:
    """Return the server's rows of attempts that have another one with a better claim.

    Columns: `trace_id`, `span_id`, `attempt`, and `reason`: `inner` for a call made on behalf of the other one,
    else `retried`.
    """
    records = records.mutate(is_direct=_.parent_span_id == _.attempt)
    # The few attempts with several records are found first: ranking all rows would sort them all.
    several = records.group_by("trace_id", "attempt").having(_.count() > 1).aggregate(rows=_.count())
    records = records.semi_join(several, ["trace_id", "attempt"])
    # Our mark travels on with calls that the service makes, also with those made after its answer.
    best_first = [ibis.desc("is_direct"), ibis.desc("ended_at"), "span_id"]
    claim = ibis.window(group_by=["trace_id", "attempt"], order_by=best_first)
    ranked = records.mutate(
        rank=ibis.row_number().over(claim),
        winner=_.service.first().over(claim),
        winner_is_direct=_.is_direct.first().over(claim),
        winner_started=_.started_at.first().over(claim),
        winner_ended=_.ended_at.first().over(claim),
    )
    within = (_.started_at >= _.winner_started) & (_.ended_at <= _.winner_ended)
    is_inner = within | (_.service != _.winner) | (_.winner_is_direct & ~_.is_direct)
    reason = is_inner.ifelse("inner", "retried")
    return ranked.filter(_.rank > 0).select("trace_id", "span_id", "attempt", reason=reason)


def matched_attempts(
    client: ibis.Table, records: ibis.Table, seconds: ibis.Table, shifts: ibis.Table
) -> ibis.Table:
    """Return every attempt, with its server record where there is one and NULL where there is none.

    Columns of the server that the client has too begin with `server_`; `client_shift` turns the generator's
    clock into the run's.

    Args:
        client: the table.
        records: as `server_records` gives them.
        seconds: as `second_records` gives them.
        shifts: what brings each process's stamps to the run's clock.
    """
    records = records.anti_join(seconds, ["trace_id", "span_id"])
    records = records.rename(server_span_id="span_id", server_status="status", server_method="method")
    records = records.drop("client_span_id", "parent_span_id", "started_at", "ended_at").mutate(matched=True)
    keys = [("trace_id", "trace_id"), ("span_id", "attempt")]
    both = client.left_join(records, keys, rname="{name}_again")
    shifts = shifts.rename(generator="instance", client_shift="shift")
    both = both.left_join(shifts, "generator", rname="{name}_of_clock")
    return both.mutate(matched=_.matched.fill_null(False), client_shift=_.client_shift.fill_null(0))


def routes_of_names(attempts: ibis.Table) -> ibis.Table:
    """Return for each request name its usual route, whether it has server records, and whether it is kept apart.

    Columns: `name`, `usual_route`, `is_traced`, `is_kept`.
    """
    routes = attempts.group_by("name", route=_server_route(attempts)).aggregate(
        rows=_.count(), records=_.matched.sum()
    )
    usual_first = [_.route.isnull().asc(), _.rows.desc(), _.route.asc()]
    of_name = ibis.window(group_by="name")
    routes = routes.mutate(
        place=ibis.row_number().over(group_by="name", order_by=usual_first),
        records=_.records.sum().over(of_name),
        rows=_.rows.sum().over(of_name),
    ).filter(_.place == 0)
    most_first = ibis.row_number().over(order_by=[_.rows.desc(), _.name.asc()])
    return routes.select(
        "name",
        usual_route=ibis.coalesce(_.route, _.name),
        is_traced=_.records > 0,
        is_kept=most_first < MAX_NAMES,
    )


def requests(attempts: ibis.Table, names: ibis.Table, record: RunRecord, *, traced: bool) -> ibis.Table:
    """Return the rows of `requests/`.

    Args:
        attempts: as `matched_attempts` gives them.
        names: as `routes_of_names` gives them.
        record: what the run says of itself.
        traced: whether a missing record is lost even of a name that has none at all.
    """
    rows = attempts.inner_join(names, "name", rname="{name}_again")
    warm = (
        rows.intended + rows.client_shift >= record.warm_from
        if record.facts.warmup_ns
        else ibis.literal(True)
    )
    rows = rows.mutate(
        route=_.is_kept.ifelse(ibis.coalesce(_server_route(rows), _.usual_route), OTHER),
        warm=warm,
        reason=_reason(rows, record.kills, traced=traced),
        response_ns=_.done - _.intended,
        service_ns=_.done - _.sent,
        span_ns=_.ended - _.started,
        late_ns=_.sent - _.intended,
    )
    # Differences of one clock each: offsets cancel, so these hold for a client on another host too.
    away = rows.service_ns - rows.connect_ns
    rows = rows.mutate(
        network_ns=away - (rows.ended - rows.arrived),
        unattributed_ns=rows.arrived.isnull().ifelse(away - rows.span_ns, 0 * away),
    )
    return rows.select(*REQUESTS.column_names())


def unmatched_records(client: ibis.Table, records: ibis.Table, seconds: ibis.Table) -> ibis.Table:
    """Return the server's rows that `requests/` has no place for, counted by reason.

    Columns: `reason`, `rows`.

    Args:
        client: the table.
        records: as `server_records` gives them.
        seconds: as `second_records` gives them.
    """
    attempts = client.select("trace_id", attempt="span_id")
    seconds = seconds.semi_join(attempts, ["trace_id", "attempt"])
    unknown = records.anti_join(attempts, ["trace_id", "attempt"])
    traces = attempts.select("trace_id").distinct().mutate(ours=True)
    unknown = unknown.left_join(traces, "trace_id", rname="{name}_again")
    # Without a mark of ours, it is a call that a service made on behalf of one of our requests.
    inner = unknown.ours.fill_null(False) & unknown.client_span_id.isnull()
    others = unknown.select(reason=inner.ifelse("inner", "stray"))
    return (
        seconds.select("reason").union(others).group_by("reason").aggregate(rows=_.count()).order_by("reason")
    )


def _is_traced(names: pa.Table, record: RunRecord) -> bool:
    # Where no name has a record, the workers' own count tells losses from a service that makes none.
    made = any(process.role == "worker" and process.written for process in record.processes)
    return made and not any(names["is_traced"].to_pylist())


def _server_route(rows: ibis.Table) -> ibis.Value:
    return rows.method + " " + rows.http_route


def _reason(rows: ibis.Table, kills: tuple[int, ...], *, traced: bool) -> ibis.Value:
    sent = rows.sent + rows.client_shift
    killed = ibis.or_(*(sent.between(at - KILL_REACH_NS, at + KILL_SLACK_NS) for at in kills))
    return ibis.cases(
        (rows.matched, ibis.null("string")),
        ((rows.error == "reset") & killed, "killed"),
        (rows.error.isin(_UNANSWERED), rows.error),
        (rows.status.isnull() & rows.error.notnull(), "other"),
        (rows.done.isnull(), "unfinished"),
        (rows.is_traced | traced, "lost"),
        else_="untraced",
    )
