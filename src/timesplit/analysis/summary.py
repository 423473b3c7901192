"""What a run comes to: the figures that the report shows and that `summary.json` holds.

Durations are integer nanoseconds, rates are per second, None means unknown. The JSON schema in
`docs/summary.schema.json` is made from these classes and their docstrings.
"""

from dataclasses import dataclass
from typing import Literal

SUMMARY_VERSION = 1

Unit = Literal["blocks", "bursts"]
Subject = Literal["jobs", "errors", "gap", "tail"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % confidence interval of a quantile.

    Attributes:
        low_ns: lower end.
        high_ns: upper end.
        blocks: how many observations it rests on.
        unit: what an observation is: a block of time, or a burst.
    """

    low_ns: int
    high_ns: int
    blocks: int
    unit: Unit


@dataclass(frozen=True, slots=True)
class Figure:
    """A quantile as it was measured.

    Attributes:
        value_ns: the quantile, an order statistic of all values.
        enough: whether there are values enough to quote it at all.
        interval: its 95 % interval; None where blocks or bursts are too few or depend on one another.
    """

    value_ns: int
    enough: bool
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a duration is spread over requests, or over bursts.

    Attributes:
        n: number of values.
        p50: median.
        p95: 95th percentile.
        p99: 99th percentile.
        max_ns: the largest value.
    """

    n: int
    p50: Figure
    p95: Figure
    p99: Figure
    max_ns: int


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A duration by percentile, cut where the data end.

    Attributes:
        percentiles: between 0 and 1, ascending.
        values_ns: the duration at each.
    """

    percentiles: tuple[float, ...]
    values_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Windows:
    """Response times in windows of equal length, warm-up included.

    Attributes:
        width_ns: length of a window.
        starts_ns: beginning of each window that had requests, since the run began.
        counts: requests that were due in it and succeeded.
        p50_ns: median of each window.
        p99_ns: 99th percentile; None where the window has too few requests for one.
        max_ns: maximum of each window.
    """

    width_ns: int
    starts_ns: tuple[int, ...]
    counts: tuple[int, ...]
    p50_ns: tuple[int, ...]
    p99_ns: tuple[int | None, ...]
    max_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InProcess:
    """The same bursts, made in process without a network: what a test sees.

    Attributes:
        n: calls.
        bursts: bursts.
        median_ns: median of a call, timed from its own start.
        max_ns: longest call.
        wall_median_ns: median time from the beginning of a burst to its last answer.
        wall_max_ns: longest such time.
    """

    n: int
    bursts: int
    median_ns: int
    max_ns: int
    wall_median_ns: int
    wall_max_ns: int


@dataclass(frozen=True, slots=True)
class Waves:
    """Answers of a burst that come in groups of equal size.

    Attributes:
        size: answers in a group.
        step_ns: time between groups.
    """

    size: int
    step_ns: int


@dataclass(frozen=True, slots=True)
class Bursts:
    """What bursts show that single requests do not.

    Attributes:
        count: bursts in which every request succeeded.
        incomplete: bursts in which a request failed; they are not in these figures.
        size: requests in a burst.
        wall: time from the instant at which a burst was due to its last answer, over bursts.
        response_ns: response time of the i-th answer of a burst, median over bursts.
        response_low_ns: the same, smallest over bursts.
        response_high_ns: the same, largest over bursts.
        span_ns: what the server span says of the i-th answer, median over bursts; None where unknown.
        at_once: spans open at a time in one worker, mean while a burst ran; None where unknown.
        waves: the groups in which answers came; None where they did not come in groups.
    """

    count: int
    incomplete: int
    size: int
    wall: Distribution
    response_ns: tuple[int, ...]
    response_low_ns: tuple[int, ...]
    response_high_ns: tuple[int, ...]
    span_ns: tuple[int, ...] | None
    at_once: float | None
    waves: Waves | None


@dataclass(frozen=True, slots=True)
class PartTime:
    """Time that requests spent in one part.

    Attributes:
        n: requests of which it is known.
        mean_ns: mean.
        p50_ns: median.
        p95_ns: 95th percentile.
        p99_ns: 99th percentile.
        max_ns: maximum.
    """

    n: int
    mean_ns: int
    p50_ns: int
    p95_ns: int
    p99_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True)
class Band:
    """Requests between two percentiles of response time, and where their time went.

    Attributes:
        low: lower percentile, between 0 and 1.
        high: upper percentile.
        n: requests in it.
        response_ns: their mean response time.
        parts_ns: their mean time in each part; the parts add up to the response time.
    """

    low: float
    high: float
    n: int
    response_ns: int
    parts_ns: dict[str, int]


@dataclass(frozen=True, slots=True)
class Tail:
    """Who owns the tail: what the slowest requests spend more than ordinary ones, by part.

    Conditional means: mean of the requests at or above p99 less mean of those between p45 and p55. As the parts of
    each request add up to its response time, so do these differences to the tail's excess, without remainder.

    Attributes:
        n: requests at or above p99.
        ordinary_n: requests between p45 and p55.
        excess_ns: mean response time of the former less that of the latter.
        parts_ns: the same of each part, the largest first; some can be negative.
        owner: the part with the largest.
        slow_ns: mean time of the requests at or above p99 in each part, ordinary share included.
        culprit: `file:line function` that cost the slowest requests most; None where nobody did.
        culprit_ns: what it cost them, mean over all of them.
    """

    n: int
    ordinary_n: int
    excess_ns: int
    parts_ns: dict[str, int]
    owner: str
    slow_ns: dict[str, int]
    culprit: str | None
    culprit_ns: int


@dataclass(frozen=True, slots=True)
class RouteSummary:
    """One route in one stage, after the warm-up.

    Attributes:
        route: method and route template.
        stage: stage of the scenario.
        requests: attempts that were due.
        failed: attempts that failed; they have no part in the durations.
        failures: failed attempts by error.
        unfinished: attempts that were open when the run ended; neither failed nor in the durations.
        rate: answers per second: over the stage, or over the time in which bursts ran.
        response: response time, done − intended.
        span: what the trace says: duration of the server span.
        gap: response time less server span, request by request.
        in_process: the same bursts without a network; None where none were made.
        parts: time by part, of those parts that are known.
        queries: database statements per request, mean; None where unknown.
        upstream_calls: outbound HTTP calls per request, mean; None where unknown.
        bursts: what bursts show; None where the stage has none.
        spectrum: response time by percentile.
        span_spectrum: server span by percentile.
        windows: response time over time; None for bursts.
        bands: where the time went, by percentile of response time.
        tail: who owns the tail; None where there are too few requests.
    """

    route: str
    stage: str
    requests: int
    failed: int
    failures: dict[str, int]
    unfinished: int
    rate: float | None
    response: Distribution | None
    span: Distribution | None
    gap: Distribution | None
    in_process: InProcess | None
    parts: dict[str, PartTime]
    queries: float | None
    upstream_calls: float | None
    bursts: Bursts | None
    spectrum: Spectrum | None
    span_spectrum: Spectrum | None
    windows: Windows | None
    bands: tuple[Band, ...]
    tail: Tail | None

    @property
    def has_parts(self) -> bool:
        """Whether the ledger recorded its requests: spans alone tell of no loop."""
        return "loop" in self.parts


@dataclass(frozen=True, slots=True)
class Completeness:
    """Whether the records account for everything that happened, warm-up included.

    Attributes:
        attempts: attempts that the generators say they began; None where they did not say.
        client_rows: rows of `client/`.
        answered: attempts that were answered in full.
        server_rows: rows of `server/`.
        matched: attempts with a server record.
        unmatched: attempts without one, by reason.
        server_unmatched: server records that belong to no attempt or to one that has another, by reason.
        spans_made: server spans that the workers made, those of WebSockets included; None where they are not
            numbered.
        spans_arrived: of these, received.
        spans_dropped: of these, lost and counted; None where unknown.
        lost_uncounted: attempts whose server record is lost although no worker counts it as lost.
        is_complete: whether attempts and client rows agree, and every missing server record was counted.
    """

    attempts: int | None
    client_rows: int
    answered: int
    server_rows: int
    matched: int
    unmatched: dict[str, int]
    server_unmatched: dict[str, int]
    spans_made: int | None
    spans_arrived: int | None
    spans_dropped: int | None
    lost_uncounted: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class JobSummary:
    """Work asked of the service, by stage and kind.

    Attributes:
        stage: stage of the scenario.
        kind: `queue` or `background`.
        posted: jobs that the service accepted.
        finished: seen finished.
        dead: given up after retries, kept as dead letters.
        open: queued or running when last seen, and something still looks after them.
        lost: accepted, not finished, and nobody will ever do them.
        repeated: jobs whose effect took place more than once.
        retried: jobs that were started more than once.
        turnaround: from acceptance to the moment the generator saw it finished.
    """

    stage: str
    kind: str
    posted: int
    finished: int
    dead: int
    open: int
    lost: int
    repeated: int
    retried: int
    turnaround: Distribution | None


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """WebSockets and event streams, by name, stage and side.

    Attributes:
        name: request name, or route template on the server side.
        stage: stage of the scenario; empty on the server side.
        kind: `websocket` or `sse`.
        side: `client` or `server`: who saw it.
        opened: streams opened.
        closed: streams that ended without an error.
        failures: failed streams by error.
        messages: messages seen.
        first: from opening a stream to its first message.
        lifetime: from opening a stream to its end.
    """

    name: str
    stage: str
    kind: str
    side: str
    opened: int
    closed: int
    failures: dict[str, int]
    messages: int
    first: Distribution | None
    lifetime: Distribution | None


@dataclass(frozen=True, slots=True)
class Process:
    """A process that took part.

    Attributes:
        instance: its random id.
        role: `generator`, `worker` or `forwarder`.
        service: OTEL_SERVICE_NAME, or the role.
        host: host name.
        pid: process id.
        written: records begun.
        forwarded: of these, in the run folder.
        dropped: of these, lost and counted.
        versions: versions of what ran there.
        configuration: settings that matter.
    """

    instance: str
    role: str
    service: str
    host: str
    pid: int
    written: int | None
    forwarded: int | None
    dropped: int | None
    versions: dict[str, str]
    configuration: dict[str, str]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was run, where and how.

    Attributes:
        key: key of the run, in hexadecimal.
        folder: name of the run folder.
        scenario: name of the scenario.
        title: what it is, in a line.
        question: what it asks, in a line.
        model: `closed` or `bursts`.
        target: URL of the service under test.
        began: when it began, UTC, ISO 8601.
        ended: when it ended; None where the run was cut short.
        lasted_ns: from beginning to end, or to the last sign of life.
        warmup_ns: cut off at the beginning.
        stages: names of the stages in order.
        users: simulated users at most; None where unknown.
        generators: generator processes; None where unknown.
        traces: who made the server spans: `otel`, `off`; None where unknown.
        command: the command line.
        git_commit: commit of the working copy.
        versions: versions of what ran.
        service: settings of the service under test.
        faults: what was done to it on purpose, a line each.
    """

    key: str
    folder: str
    scenario: str
    title: str
    question: str
    model: str
    target: str
    began: str
    ended: str | None
    lasted_ns: int
    warmup_ns: int
    stages: tuple[str, ...]
    users: int | None
    generators: int | None
    traces: str | None
    command: tuple[str, ...]
    git_commit: str | None
    versions: dict[str, str]
    service: dict[str, str]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """The one sentence to act on.

    Attributes:
        subject: what it is about: lost jobs, failed requests, waiting outside the server span, or the tail.
        route: the route it names; None where it names none.
        stage: its stage; None where it names none.
        text: the sentence; names are between backticks.
    """

    subject: Subject
    route: str | None
    stage: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that a report of one run says.

    Attributes:
        summary_version: version of this record.
        timesplit: version of timesplit that made it.
        run: what was run.
        headline: the one sentence to act on.
        notes: what a reader must know before believing a figure, a line each.
        routes: figures by route and stage, in the order of the stages.
        completeness: whether the records account for everything.
        jobs: work asked of the service.
        streams: WebSockets and event streams.
        processes: who took part.
    """

    summary_version: int
    timesplit: str
    run: RunFacts
    headline: Headline
    notes: tuple[str, ...]
    routes: tuple[RouteSummary, ...]
    completeness: Completeness
    jobs: tuple[JobSummary, ...]
    streams: tuple[StreamSummary, ...]
    processes: tuple[Process, ...]
