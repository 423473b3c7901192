"""Calls in threads: their parts stand in the account where a strand waited for them."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from timesplit.instrumentation.ledger import (
    LOOP,
    MANY_WAITS,
    OFFLOAD_RUN,
    OFFLOAD_WAIT,
    OTHER_WAIT,
    ROUTE,
    Run,
    Segment,
    Strand,
    split,
)
from timesplit.parts import CODES

QUERY = CODES["query"]
pieces = st.lists(st.tuples(st.sampled_from([OFFLOAD_RUN, QUERY]), st.integers(0, 50)), max_size=20)


def waited_for(run: Run, strand: Strand, suspended: int, resumed: int) -> None:
    """A step of the strand until `suspended`; then it waits for the thread, and for its loop until `resumed`."""
    strand.suspended = suspended
    strand.wake(run.ended, run)
    strand.step(resumed)


@given(pieces, st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_a_call_in_a_thread_is_charged_as_it_went(
    done: list[tuple[int, int]], before: int, step: int, after: int
) -> None:
    strand = Strand(1000)
    strand.began = 1000
    run = Run(1000 + before, strand)
    truth = Counter({ROUTE: before + step})
    now = 1000 + before + step + 5
    truth[OFFLOAD_WAIT] += 5
    for part, ns in done:
        run.change(now, part, "")
        truth[part] += ns
        now += ns
    run.end(now)
    waited_for(run, strand, 1000 + before + step, now + after)
    truth[LOOP] += after

    found: Counter[int] = Counter()
    for segment in split(strand, 1000, now + after):
        found[segment.part] += segment.end - segment.start
    assert found == +truth


def test_a_call_that_goes_on_after_the_response_is_charged_until_then() -> None:
    strand = Strand(0)
    strand.began = 1
    run = Run(1, strand)
    run.change(3, OFFLOAD_RUN, "job")
    strand.suspended = 1
    strand.wake(10, None)
    strand.step(10)
    strand.waits[-1] = strand.waits[-1]._replace(waker=run)

    assert split(strand, 1, 10) == [Segment(OFFLOAD_WAIT, "", 1, 3), Segment(OFFLOAD_RUN, "job", 3, 10)]


def test_a_wait_that_ends_a_call_of_another_request_keeps_its_own_part() -> None:
    strand, other = Strand(0), Strand(0)
    run = Run(1, other)
    run.end(5)
    strand.began = 1
    waited_for(run, strand, 2, 8)

    assert split(strand, 1, 8)[1:] == [Segment(OTHER_WAIT, "", 2, 5), Segment(LOOP, "", 5, 8)]


def test_very_many_pieces_are_summed_up() -> None:
    strand = Strand(0)
    run = Run(1, strand)
    for now in range(2, 10 * MANY_WAITS, 2):
        run.change(now, QUERY, "SELECT a")
        run.change(now + 1, OFFLOAD_RUN, "job")
    run.end(10 * MANY_WAITS)

    assert len(run.waits) <= MANY_WAITS
    found: Counter[int] = Counter()
    for wait in run.waits:
        found[wait.part] += wait.ready - wait.suspended
    assert found == {OFFLOAD_WAIT: 1, QUERY: 5 * MANY_WAITS - 1, OFFLOAD_RUN: 5 * MANY_WAITS - 1}
    assert all(a.ready == b.suspended for a, b in zip(run.waits, run.waits[1:], strict=False))
