"""The records of a run folder: one definition for writers, readers and documentation.

Times are integer nanoseconds of the host's CLOCK_MONOTONIC; durations are integer nanoseconds and their
names end in `_ns`. NULL means unknown, 0 means none.
"""

from dataclasses import dataclass
from typing import Literal

from timesplit.parts import PARTS, SERVER_PARTS

SCHEMA_VERSION = 1

Kind = Literal["int", "float", "bool", "text", "trace_id", "span_id"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: name in the Parquet file.
        kind: `int` is 64-bit signed; ids are binary of 16 (`trace_id`) and 8 (`span_id`) bytes.
        meaning: one line for the documentation.
        nullable: whether NULL, "unknown", can occur.
    """

    name: str
    kind: Kind
    meaning: str
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A folder of Parquet files with the same columns, one writer per file."""

    name: str
    row: str
    writer: str
    columns: tuple[Column, ...]

    def column_names(self) -> list[str]:
        """Names of the columns, in file order."""
        return [column.name for column in self.columns]


def _must(name: str, kind: Kind, meaning: str) -> Column:
    return Column(name, kind, meaning, nullable=False)


_CLIENT_FACTS = (
    _must("name", "text", "request name: method and route template as the scenario calls it"),
    _must("stage", "text", "stage of the scenario"),
    Column("burst", "int", "number of the burst within its stage; requests of a burst share `intended`"),
    _must("method", "text", "HTTP method"),
    _must("intended", "int", "when the request was due"),
    Column("sent", "int", "when connecting or the first write began; NULL if it never did"),
    Column("first_byte", "int", "when the answer's status line was there"),
    Column("done", "int", "when the last byte had come; NULL if it never did"),
    Column("connect_ns", "int", "opening a new connection; 0 on a reused one"),
    Column("reused", "bool", "whether the connection had carried an earlier request"),
    Column("status", "int", "HTTP status of the answer"),
    Column("error", "text", "why the attempt failed, one of ERRORS or `failed: …`; NULL if it did not"),
    Column("bytes", "int", "bytes of the answer's body"),
    _must("generator", "text", "instance of the generator process; see hosts/"),
)

ERRORS: dict[str, str] = {
    "refused": "the connection was refused, or the service answered 503 without running the app",
    "reset": "the connection was closed or reset before the answer was complete",
    "timeout": "the client gave up waiting",
    "unfinished": "the attempt was open when the run ended",
    "status": "the answer's status was 400 or above, and the scenario did not expect it",
    "other": "any other failure of the client; the log of the generator has it",
}

CLIENT = Table(
    "client",
    "request attempt",
    "generator process",
    (
        _must("trace_id", "trace_id", "upper 8 bytes: the run's key; lower 8: random"),
        _must("span_id", "span_id", "the attempt's client span"),
        *_CLIENT_FACTS,
    ),
)

_SERVER_FACTS = (
    _must("service", "text", "OTEL_SERVICE_NAME of the service"),
    _must("instance", "text", "instance of the worker process; see hosts/"),
    _must("pid", "int", "process id of the worker"),
    Column("seq", "int", "number of the server span within its worker: a gap is a lost span (mode otel)"),
    Column("http_route", "text", "route template; NULL where none matched"),
    Column("status", "int", "HTTP status that the service sent"),
    Column("arrived", "int", "when the request's first bytes reached the kernel"),
    _must("started", "int", "first step of the ASGI call: where a server span begins"),
    _must("ended", "int", "last write to the kernel; where a server span ends (mode otel)"),
    Column("ended_by", "text", "`response`, `disconnect`, `exception` (even where a 500 was sent), `killed`"),
    Column(
        "route_cpu_ns", "int", "of `route_ns`, CPU time; the rest was blocked: a blocking call, or the GIL"
    ),
    Column("uncertain_ns", "int", "how much of the waits could belong elsewhere: an overlay, not a part"),
    Column("query_count", "int", "database statements"),
    Column("upstream_count", "int", "outbound HTTP calls"),
    Column("other", "text", "name of the longest other wait"),
    Column("culprit", "text", "`file:line function` that cost most of the waits for the loop"),
    Column("culprit_ns", "int", "what it cost"),
    Column("doing", "text", "the part that a killed request was in"),
)

_PART_COLUMNS = tuple(Column(part.column, "int", part.meaning) for part in SERVER_PARTS)

SERVER = Table(
    "server",
    "request served",
    "forwarder",
    (
        _must("trace_id", "trace_id", "of the request"),
        _must("span_id", "span_id", "the server span"),
        Column("parent_span_id", "span_id", "the span that the service saw as its caller"),
        Column("client_span_id", "span_id", "from `tracestate: timesplit=…`: survives proxies"),
        _must("method", "text", "HTTP method"),
        *_SERVER_FACTS,
        *_PART_COLUMNS,
    ),
)

SEGMENTS = Table(
    "segments",
    "part segment of a kept request",
    "forwarder",
    (
        _must("trace_id", "trace_id", "of the request"),
        _must("span_id", "span_id", "its server span"),
        _must("part", "text", "the part that the stretch is charged to"),
        _must("label", "text", "what it is about: `SELECT users`, `sleep`; empty where nothing is to say"),
        _must("started", "int", "when it began"),
        _must("ended", "int", "when it ended: the next one's beginning"),
    ),
)

STEPS = Table(
    "steps",
    "event-loop step of 1 ms or more, or GC pause",
    "forwarder",
    (
        _must("instance", "text", "instance of the worker process; see hosts/"),
        Column("span_id", "span_id", "server span of the request whose step it was"),
        _must("started", "int", "when it began"),
        _must("ended", "int", "when it ended"),
        _must("owner", "text", "`GET /route`, a task's name, or `gc 2`"),
        Column("file", "text", "where the code is"),
        Column("line", "int", "where in the file"),
        Column("function", "text", "its name"),
        Column("cpu_ns", "int", "CPU time of the thread in it"),
    ),
)

CROWD = Table(
    "crowd",
    "worker, owner and about 100 ms: the loop's time in steps too short for a row each in steps/",
    "forwarder",
    (
        _must("instance", "text", "instance of the worker process; see hosts/"),
        _must("owner", "text", "as in steps/"),
        _must("started", "int", "beginning of the stretch"),
        _must("ended", "int", "its end"),
        _must("busy_ns", "int", "time in its steps"),
    ),
)

AFTER = Table(
    "after",
    "piece of work after a response",
    "forwarder",
    (
        _must("instance", "text", "instance of the worker process; see hosts/"),
        _must("span_id", "span_id", "server span of the request that it came after"),
        _must("route", "text", "method and template of that request"),
        _must("started", "int", "when the response had ended"),
        _must("ended", "int", "when the work had"),
        _must("busy_ns", "int", "time in its steps on the event loop"),
    ),
)

HOSTS = Table(
    "hosts",
    "process that took part; several rows of one process in time: the last holds",
    "forwarder, generator",
    (
        _must("instance", "text", "random id of the process"),
        _must("role", "text", "`generator`, `worker`, `forwarder`"),
        _must("pid", "int", "process id"),
        _must("host", "text", "host name"),
        _must("boot_id", "text", "boot id of the host: same boot id, same CLOCK_MONOTONIC"),
        _must("service", "text", "OTEL_SERVICE_NAME, or the role"),
        _must("monotonic", "int", "clock anchor: CLOCK_MONOTONIC …"),
        _must("utc", "int", "… and UTC nanoseconds since 1970, read together"),
        Column("written", "int", "records begun: attempts (generator), server spans made (worker)"),
        Column("forwarded", "int", "of these, arrived in this folder"),
        Column("dropped", "int", "of these, lost and counted: `written - forwarded`"),
        Column("versions", "text", "JSON object: versions of what runs there"),
        Column("configuration", "text", "JSON object: settings that matter, secrets left out"),
    ),
)

STREAMS = Table(
    "streams",
    "WebSocket or event stream, seen from one side",
    "generator (client side), forwarder (server side)",
    (
        _must("trace_id", "trace_id", "of the request that opened it"),
        _must("span_id", "span_id", "span of this side"),
        Column("parent_span_id", "span_id", "span of the other side, where known"),
        _must("side", "text", "`client` or `server`"),
        _must("name", "text", "request name, or route template"),
        _must("stage", "text", "stage of the scenario; empty on the server side"),
        _must("kind", "text", "`websocket` or `sse`"),
        _must("opened", "int", "when opening it was begun"),
        Column("first", "int", "first message"),
        _must("messages", "int", "messages seen"),
        Column("closed", "int", "when it ended"),
        Column("code", "int", "WebSocket close code, or HTTP status"),
        Column("error", "text", "as in client/"),
    ),
)

INPROCESS = Table(
    "inprocess",
    "request of a burst made in process, without a network (httpx ASGITransport)",
    "lab",
    (
        _must("name", "text", "request name, as in client/"),
        _must("stage", "text", "stage, as in client/"),
        _must("burst", "int", "number of the burst within its stage"),
        _must("burst_started", "int", "when the burst began"),
        _must("started", "int", "when this call began: where a test starts its clock"),
        _must("done", "int", "when it had its answer"),
        _must("status", "int", "HTTP status"),
    ),
)

JOBS = Table(
    "jobs",
    "piece of work asked of the service: a queued job, or a background task",
    "generator, when the scenario looks after it",
    (
        _must("job_id", "text", "id that the service answered"),
        _must("kind", "text", "`queue` or `background`"),
        _must("stage", "text", "stage of the scenario"),
        _must("posted", "int", "when the answer with the id was there"),
        Column("seen_finished", "int", "when the generator saw it finished; NULL: lost or still open"),
        _must("state", "text", "last state seen: `queued`, `running`, `finished`, `dead`, `unknown`"),
        Column("effects", "int", "how often its effect took place: 1 is right, 2 is a duplicate"),
        Column("attempts", "int", "how often it was started"),
    ),
)

REASONS: dict[str, str] = {
    "refused": ERRORS["refused"],
    "reset": ERRORS["reset"],
    "timeout": "the client gave up and no server record came",
    "unfinished": ERRORS["unfinished"],
    "other": "the client failed in another way before it had an answer",
    "killed": "its worker ended before it did",
    "lost": "it was answered, and its server record was made but never arrived",
    "untraced": "it was answered by something that makes no records",
    "inner": "a call between instrumented services: not an error",
    "retried": "an earlier server record of the same attempt",
    "stray": "a server record of this run whose client record is missing",
}

REQUESTS = Table(
    "requests",
    "joined request: the only input of latency statistics",
    "timesplit report",
    (
        CLIENT.columns[0],
        CLIENT.columns[1],
        *_CLIENT_FACTS,
        _must("route", "text", "method and template; without a server row, what most rows of its name have"),
        _must("warm", "bool", "after the warm-up: only these count"),
        _must("matched", "bool", "whether a server record was found"),
        Column("reason", "text", "why not: one of REASONS"),
        Column("response_ns", "int", "response time: `done - intended`"),
        Column("service_ns", "int", "service time: `done - sent`"),
        Column("span_ns", "int", "what a trace says: `ended - started`"),
        Column("server_span_id", "span_id", "span of the server record"),
        *(
            Column("server_status" if column.name == "status" else column.name, column.kind, column.meaning)
            for column in _SERVER_FACTS
        ),
        # `connect_ns` is among the client's facts already.
        *(Column(part.column, "int", part.meaning) for part in PARTS if part.name != "connect"),
    ),
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (CLIENT, SERVER, SEGMENTS, STEPS, CROWD, AFTER, HOSTS, STREAMS, INPROCESS, JOBS, REQUESTS)
}
