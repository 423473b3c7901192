"""The one sentence that a report opens with: what to do first, and nothing that the records do not tell."""

from collections.abc import Sequence
from typing import Final

from timesplit.analysis.summary import Bursts, Distribution, Headline, JobSummary, RouteSummary, Tail

FAILED_SHARE: Final = 0.01  # of a route's attempts: beyond it, failing comes before being slow
GAP_SHARE: Final = 0.5  # of what the client waits: beyond it, the trace tells less than half
GAP_NS: Final = 20_000_000  # a gap that a person can notice
ONE_AT_A_TIME: Final = 1.5  # spans open at a time below which a worker takes requests one after another
PART_SHARE: Final = 0.5  # of the span: beyond it, a part explains it
MANY_QUERIES: Final = 5  # statements per request that look like a loop of queries
LOOP_PARTS: Final = ("loop", "read", "accept")
# By the part that owns a tail: what it is, and what to do.
ADVICE: Final = {
    "late": "the generator's own delay: the figures are of no use before it is faster",
    "connect": "opening connections: reuse them",
    "receive": "waiting for the client to send its request",
    "route": "its own code on the event loop: take work out of the request path, or into processes",
    "offload_wait": "waiting for a worker thread: await instead of holding one, or allow more threads",
    "offload_run": "a call that runs in a worker thread: make it shorter, or await it",
    "pool_wait": "waiting for a database connection: hold them for less time, or allow more",
    "db_connect": "opening database connections: keep them open",
    "query": "the database at work: look at its statements and their plans",
    "cache": "the cache at work",
    "upstream_wait": "waiting for an outbound connection: make one client and share it, with more connections",
    "upstream": "the outbound call: call side by side, cache, or set a timeout",
    "other_wait": "another wait, whose name is in the table below",
    "send": "a client that is slow to take the answer",
    "network": "the way between client and server",
    "unattributed": "time whose edges could not be stamped",
}


def write_headline(routes: Sequence[RouteSummary], jobs: Sequence[JobSummary]) -> Headline:
    """Return the sentence: lost work first, then failures, then waiting that traces hide, then the slowest."""
    return (
        _about_jobs(jobs)
        or _about_failures(routes)
        or _about_owner(routes)
        or _about_gap(routes)
        or _about_tail(routes)
    )


def spoken(nanoseconds: int) -> str:
    """Return a duration as one says it: two digits or more, in ms, from one second on in s."""
    value, unit = (nanoseconds / 1e6, "ms") if abs(nanoseconds) < 1e9 else (nanoseconds / 1e9, "s")
    digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.95 else 2
    return f"{value:,.{digits}f} {unit}"


def _about_jobs(jobs: Sequence[JobSummary]) -> Headline | None:
    worst = max(jobs, key=lambda each: each.lost, default=None)
    if worst and worst.lost:
        kept = max((each for each in jobs if each.kind == "queue" and not each.lost), key=_done, default=None)
        beside = f", while the queue kept all {kept.posted:,}" if kept and worst.kind != "queue" else ""
        noun = "background tasks" if worst.kind == "background" else "jobs"
        text = f"{worst.lost:,} of {worst.posted:,} {noun} were accepted and never done{beside}: "
        return Headline("jobs", None, worst.stage, text + "put work that must not be lost on a queue.")
    repeated = sum(each.repeated for each in jobs)
    if repeated:
        text = f"{repeated:,} jobs took effect more than once: make what they do safe to repeat."
        return Headline("jobs", None, None, text)
    return None


def _done(jobs: JobSummary) -> int:
    return jobs.finished + jobs.dead


def _about_failures(routes: Sequence[RouteSummary]) -> Headline | None:
    failing = [route for route in routes if route.failed > FAILED_SHARE * route.requests]
    if not failing:
        return None
    worst = max(failing, key=lambda route: route.failed / route.requests)
    errors = ", ".join(f"{_plain(error)} {count:,}" for error, count in worst.failures.items())
    text = (
        f"{_named(worst)}: {worst.failed:,} of {worst.requests:,} requests failed ({errors}); "
        "mend this first, the times below are of those that succeeded."
    )
    return Headline("errors", worst.route, worst.stage, text)


def _about_owner(routes: Sequence[RouteSummary]) -> Headline | None:
    """Name the worst route, the part that owns its tail, and what to do; None without a ledger."""
    owned = [route for route in routes if route.has_parts and route.tail and route.tail.excess_ns >= GAP_NS]
    if not owned:
        return None
    worst = max(owned, key=lambda route: route.tail.excess_ns if route.tail else 0)
    assert worst.tail is not None  # one of those that are owned
    assert worst.response is not None  # bands and tail are made of it
    name, response = _tail(worst.response)
    return Headline(
        "tail",
        worst.route,
        worst.stage,
        f"{_named(worst)}: {name} is {spoken(response)}, {_owned(worst, worst.tail)}.",
    )


def _owned(route: RouteSummary, tail: Tail) -> str:
    together = LOOP_PARTS if tail.owner in LOOP_PARTS else (tail.owner,)  # one cause, at three places
    share = spoken(sum(tail.slow_ns.get(part, 0) for part in together))
    if tail.owner in LOOP_PARTS and tail.culprit:
        return (
            f"of which {share} is waiting behind `{_plain(tail.culprit)}`, which holds the event loop; "
            "await that call, offload it, or make its route `def`"
        )
    if tail.owner in LOOP_PARTS:
        return (
            f"of which {share} is waiting for a busy event loop, with no single culprit: too many short steps "
            "for one core; add workers, or take work off the loop"
        )
    many = tail.owner == "query" and route.queries is not None and route.queries >= MANY_QUERIES
    if many:
        return f"of which {share} is {route.queries:.0f} database statements a request: fetch them in one"
    return f"of which {share} is {ADVICE[tail.owner]}"


def _about_gap(routes: Sequence[RouteSummary]) -> Headline | None:
    hidden = [route for route in routes if _hidden_ns(route)]
    if not hidden:
        return None
    worst = max(hidden, key=_hidden_ns)
    text = _gap_of_bursts(worst, worst.bursts) if worst.bursts else _gap_of_requests(worst)
    return Headline("gap", worst.route, worst.stage, text)


def _hidden_ns(route: RouteSummary) -> int:
    """Return the time in the tail that the server span does not tell of, 0 where it is not worth a word."""
    if route.gap is None or route.response is None or route.span is None or not route.gap.p95.enough:
        return 0
    response, span, gap = (_tail(each)[1] for each in (route.response, route.span, route.gap))
    # The longest gap and the longest span can be of different requests: then the span tells of the tail after all.
    hidden = min(gap, response - span)
    return hidden if hidden >= GAP_NS and hidden >= GAP_SHARE * response else 0


def _gap_of_bursts(route: RouteSummary, bursts: Bursts) -> str:
    assert route.span is not None  # a gap is the difference to a span
    tested = f" and an in-process test {spoken(route.in_process.median_ns)}" if route.in_process else ""
    return (
        f"{_named(route)}: the trace says {spoken(route.span.p50.value_ns)}{tested}, but of {bursts.size} clients "
        f"at once the last waits {spoken(bursts.wall.p50.value_ns)}: {_cause(bursts)}."
    )


def _cause(bursts: Bursts) -> str:
    if bursts.at_once is not None and bursts.at_once < ONE_AT_A_TIME:
        return (
            "a worker runs them one after another, so a call in the route blocks its event loop; "
            "await that call, offload it, or make the route `def`"
        )
    if bursts.waves:
        return (
            f"answers come in waves of {bursts.waves.size}, {spoken(bursts.waves.step_ns)} apart, so that many "
            "run at a time; await instead of holding a thread, or allow more threads"
        )
    return "the wait lies outside the server span, before the application starts or after it has answered"


def _gap_of_requests(route: RouteSummary) -> str:
    assert route.span is not None  # a gap is the difference of the two
    assert route.response is not None
    name, response = _tail(route.response)
    return (
        f"{_named(route)}: {name} is {spoken(response)} at the client and {spoken(_tail(route.span)[1])} in the "
        "server span; the rest is waited outside the span, where traces do not look. Look for blocking calls in "
        "`async def` routes of the same service, and for too few workers."
    )


def _about_tail(routes: Sequence[RouteSummary]) -> Headline:
    measured = [route for route in routes if route.response]
    # A handful of requests can be slow by chance.
    slowest = max(measured, key=lambda route: (_is_enough(route), _p95(route)), default=None)
    if slowest is None or slowest.response is None:
        # Failures have a sentence of their own, so there was nothing to fail either.
        return Headline("tail", None, None, "The run ended within its warm-up: let it last longer.")
    name, response = _tail(slowest.response)
    text = f"{_named(slowest)} is the slowest: {name} {spoken(response)} (n = {slowest.response.n:,}); "
    return Headline("tail", slowest.route, slowest.stage, text + _explained(slowest))


def _is_enough(route: RouteSummary) -> bool:
    return route.response is not None and route.response.p95.enough


def _p95(route: RouteSummary) -> int:
    return route.response.p95.value_ns if route.response else 0


def _explained(route: RouteSummary) -> str:
    if route.span is None:
        return "there are no server records, so nothing tells where the time goes."
    span = route.span.p50.value_ns
    parts = {name: route.parts[name].p50_ns for name in ("query", "cache", "upstream") if name in route.parts}
    part = max(parts, key=lambda name: parts[name], default=None)
    if part is None or parts[part] < PART_SHARE * span:
        return f"its server span's median is {spoken(span)}, and no call that was recorded explains it."
    share = f"in the median, {part} is {spoken(parts[part])} of its {spoken(span)} on the server"
    if part == "query" and route.queries and route.queries >= MANY_QUERIES:
        return f"{share}, in {route.queries:.0f} statements a request: fetch them in one."
    return f"{share}: look there first."


def _tail(times: Distribution) -> tuple[str, int]:
    """Return the highest percentile that there are values enough for, and its name."""
    if times.p99.enough:
        return "p99", times.p99.value_ns
    return ("p95", times.p95.value_ns) if times.p95.enough else ("the maximum", times.max_ns)


def _named(route: RouteSummary) -> str:
    return f"`{_plain(route.route)}`"


def _plain(text: str) -> str:
    return text.replace("`", "'")
