from dataclasses import replace

import pytest

from timesplit.analysis.headline import LOOP_PARTS, spoken, write_headline
from timesplit.analysis.summary import (
    Bursts,
    Distribution,
    Figure,
    InProcess,
    JobSummary,
    PartTime,
    RouteSummary,
    Tail,
    Waves,
)
from timesplit.parts import PARTS

MS = 1_000_000


def times(p50: float, p99: float, n: int = 1000) -> Distribution:
    """A distribution in ms."""
    few, middle, high = n < 368, Figure(int(p50 * MS), True, None), int(p99 * MS)
    return Distribution(n, middle, Figure(high, n >= 72, None), Figure(high, not few, None), high)


def part(p50: float) -> PartTime:
    return PartTime(1000, *(int(p50 * MS),) * 5)


QUICK = RouteSummary(
    route="GET /quick",
    stage="steady",
    requests=1000,
    failed=0,
    failures={},
    unfinished=0,
    rate=10.0,
    response=times(5, 20),
    span=times(4, 18),
    gap=times(1, 2),
    in_process=None,
    parts={},
    queries=None,
    upstream_calls=None,
    bursts=None,
    spectrum=None,
    span_spectrum=None,
    windows=None,
    bands=(),
    tail=None,
)
SLOW = replace(QUICK, route="GET /slow", response=times(200, 400), span=times(190, 390), gap=times(2, 5))
WAITING = replace(QUICK, route="GET /waiting", response=times(5, 700), gap=times(1, 680))
BURST = replace(
    QUICK,
    route="GET /blocking",
    stage="burst-100",
    response=times(2500, 5000),
    span=times(51, 52),
    gap=times(2450, 4950),
    in_process=InProcess(200, 2, 51 * MS, 52 * MS, 5000 * MS, 5100 * MS),
    bursts=Bursts(10, 0, 100, times(5050, 5100, 10), (50 * MS,), (50 * MS,), (50 * MS,), None, 1.0, None),
)
KEPT = JobSummary("queue", "queue", 200, 199, 1, 0, 0, 0, 3, None)
LOST = JobSummary("background", "background", 200, 163, 0, 0, 37, 0, 0, None)


def test_work_that_was_lost_comes_first() -> None:
    headline = write_headline([BURST, replace(QUICK, failed=900)], [KEPT, LOST])
    assert headline.subject == "jobs"
    assert "37 of 200 background tasks" in headline.text
    assert "the queue kept all 200" in headline.text


def test_work_done_twice_is_said() -> None:
    assert "3 jobs took effect more than once" in write_headline([QUICK], [replace(KEPT, repeated=3)]).text


def test_jobs_that_all_ended_well_are_no_news() -> None:
    assert write_headline([QUICK], [KEPT]).subject == "tail"


def test_failures_come_before_slowness() -> None:
    failing = replace(QUICK, route="POST /users", failed=30, failures={"status": 20, "timeout": 10})
    headline = write_headline([WAITING, failing], [])
    assert (headline.subject, headline.route) == ("errors", "POST /users")
    assert "30 of 1,000 requests failed (status 20, timeout 10)" in headline.text


def test_a_failure_in_a_hundred_is_not_the_first_thing_to_say() -> None:
    assert write_headline([replace(SLOW, failed=10, failures={"status": 10})], []).subject == "tail"


def test_a_burst_that_waits_outside_its_span_is_named_with_what_test_trace_and_clients_say() -> None:
    headline = write_headline([SLOW, BURST], [])
    assert (headline.subject, headline.route, headline.stage) == ("gap", "GET /blocking", "burst-100")
    for said in (
        "trace says 51 ms",
        "in-process test 51 ms",
        "of 100 clients",
        "waits 5.0 s",
        "one after another",
    ):
        assert said in headline.text


def test_answers_in_waves_point_at_the_number_of_threads() -> None:
    assert BURST.bursts
    waves = replace(BURST, bursts=replace(BURST.bursts, at_once=40.0, waves=Waves(40, 51 * MS)))
    assert "waves of 40, 51 ms apart" in write_headline([waves], []).text


def test_where_the_records_do_not_tell_why_no_cause_is_given() -> None:
    assert BURST.bursts
    text = write_headline([replace(BURST, bursts=replace(BURST.bursts, at_once=None))], []).text
    assert "outside the server span" in text
    assert "event loop" not in text


def test_waiting_outside_the_span_is_named_also_without_bursts() -> None:
    headline = write_headline([SLOW, WAITING], [])
    assert (headline.subject, headline.route) == ("gap", "GET /waiting")
    assert "p99 is 700 ms at the client and 18 ms in the server span" in headline.text


def test_a_gap_that_nobody_notices_is_none() -> None:
    assert write_headline([replace(QUICK, response=times(5, 20), gap=times(3, 15))], []).subject == "tail"


def test_the_longest_gap_of_one_request_beside_the_longest_span_of_another_is_no_gap() -> None:
    teardown = replace(QUICK, response=times(5, 260), span=times(1, 250), gap=times(3, 200))
    assert write_headline([teardown], []).subject == "tail"


def test_a_gap_of_a_few_requests_is_no_news() -> None:
    rare = replace(QUICK, response=times(5, 700, n=60), span=times(4, 18, n=60), gap=times(1, 680, n=60))
    assert write_headline([rare], []).subject == "tail"


def test_a_few_slow_requests_of_a_rare_route_are_not_the_slowest() -> None:
    rare = replace(QUICK, route="GET /rare", response=times(300, 900, n=30))
    assert write_headline([rare, SLOW], []).route == "GET /slow"
    assert write_headline([rare], []).route == "GET /rare"


def test_else_the_slowest_route_is_named_with_the_part_that_explains_it() -> None:
    slow = replace(SLOW, parts={"query": part(150), "cache": part(0)}, queries=1.0)
    text = write_headline([QUICK, slow], []).text
    assert "`GET /slow` is the slowest: p99 400 ms (n = 1,000)" in text
    assert "query is 150 ms of its 190 ms on the server: look there first" in text


def test_many_statements_a_request_are_a_loop_of_queries() -> None:
    slow = replace(SLOW, parts={"query": part(150)}, queries=21.0)
    assert "in 21 statements a request: fetch them in one" in write_headline([slow], []).text


def test_what_no_part_explains_is_not_explained() -> None:
    slow = replace(SLOW, parts={"query": part(10)})
    assert "no call that was recorded explains it" in write_headline([slow], []).text


def test_without_server_records_nothing_tells_where_the_time_goes() -> None:
    text = write_headline([replace(SLOW, span=None, gap=None)], []).text
    assert "no server records" in text


def test_a_percentile_with_too_few_samples_is_not_quoted() -> None:
    assert "p95 400 ms" in write_headline([replace(SLOW, response=times(200, 400, n=100))], []).text
    assert "the maximum 400 ms" in write_headline([replace(SLOW, response=times(200, 400, n=10))], []).text


def test_a_run_that_ended_in_its_warm_up_says_so() -> None:
    nothing = replace(QUICK, requests=0, response=None, span=None, gap=None)
    assert "ended within its warm-up" in write_headline([nothing], []).text


def test_backticks_of_names_do_not_end_the_code() -> None:
    text = write_headline([replace(SLOW, route="GET /a`b`")], []).text
    assert text.startswith("`GET /a'b'` is")


@pytest.mark.parametrize(
    ("nanoseconds", "said"),
    [
        (840_000, "0.84 ms"),
        (5 * MS, "5.0 ms"),
        (51_400_000, "51 ms"),
        (5_051 * MS, "5.1 s"),
        (61_000 * MS, "61 s"),
    ],
)
def test_durations_are_said_with_two_digits(nanoseconds: int, said: str) -> None:
    assert spoken(nanoseconds) == said


def owned(owner: str, culprit: str | None, **slow: int) -> RouteSummary:
    """A route whose ledger names the owner of its tail."""
    times_of_parts = {name: ms * MS for name, ms in slow.items()}
    tail = Tail(10, 100, sum(times_of_parts.values()), times_of_parts, owner, times_of_parts, culprit, 0)
    return replace(SLOW, parts={"loop": part(1)}, tail=tail)


def test_the_ledger_names_the_line_that_others_wait_behind_with_all_that_it_cost() -> None:
    text = write_headline([QUICK, owned("read", "bad.py:12 bad", read=90, loop=80, route=5)], []).text
    assert "170 ms is waiting behind `bad.py:12 bad`" in text


def test_without_a_culprit_many_short_steps_are_to_blame() -> None:
    text = write_headline([owned("loop", None, loop=80)], []).text
    assert "no single culprit" in text


@pytest.mark.parametrize("name", [each.name for each in PARTS if each.name not in LOOP_PARTS])
def test_each_part_that_owns_a_tail_has_advice(name: str) -> None:
    text = write_headline([owned(name, None, **{name: 80})], []).text
    assert "of which 80 ms is " in text
