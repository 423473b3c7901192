import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timesplit.analysis.bursts import BurstShape, find_waves, split_by_burst, summarise_bursts
from timesplit.analysis.samples import UNKNOWN, Samples
from timesplit.analysis.summary import Bursts

MS = 1_000_000


def samples(bursts: list[list[int]], spans: list[list[int]] | None = None) -> Samples:
    """Bursts of response times in ms, due one second apart."""
    numbers = [number for number, burst in enumerate(bursts) for _ in burst]
    response = [time for burst in bursts for time in burst]
    span = [time for burst in spans for time in burst] if spans else [UNKNOWN] * len(response)
    return Samples(
        at=np.array(numbers, np.int64) * 1000 * MS,
        response=np.array(response, np.int64) * MS,
        span=np.where(np.array(span) == UNKNOWN, UNKNOWN, np.array(span, np.int64) * MS),
        burst=np.array(numbers, np.int64),
        warm=np.ones(len(response), np.bool_),
    )


def summarise(rows: Samples, shape: BurstShape) -> Bursts:
    found = summarise_bursts(split_by_burst(rows, shape), shape)
    assert found is not None
    return found


def test_the_wall_time_of_a_burst_is_that_of_its_last_answer() -> None:
    rows = samples([[30, 10, 20], [60, 40, 50], [15, 12, 90]])
    found = summarise(rows, BurstShape(3, (0, 1, 2), 0, None))
    assert (found.wall.p50.value_ns, found.wall.max_ns, found.wall.n) == (60 * MS, 90 * MS, 3)


def test_answers_are_ranked_within_their_burst_and_spans_follow_them() -> None:
    rows = samples([[30, 10, 20], [31, 21, 11], [12, 22, 32]], [[3, 1, 2], [3, 2, 1], [1, 2, 3]])
    found = summarise(rows, BurstShape(3, (0, 1, 2), 0, None))
    assert found.response_ns == (11 * MS, 21 * MS, 31 * MS)
    assert found.response_low_ns == (10 * MS, 20 * MS, 30 * MS)
    assert found.response_high_ns == (12 * MS, 22 * MS, 32 * MS)
    assert found.span_ns == (1 * MS, 2 * MS, 3 * MS)


def test_a_burst_in_which_a_request_failed_is_left_out() -> None:
    rows = samples([[30, 10, 20], [500, 600], [40, 50, 60]])
    found = summarise(rows, BurstShape(3, (0, 2), 1, None))
    assert (found.count, found.incomplete, found.wall.max_ns) == (2, 1, 60 * MS)


def test_a_span_that_is_unknown_leaves_all_of_them_unknown() -> None:
    rows = samples([[10, 20], [10, 20]], [[1, 2], [1, UNKNOWN]])
    assert summarise(rows, BurstShape(2, (0, 1), 0, None)).span_ns is None


def test_without_a_complete_burst_there_is_nothing_to_say() -> None:
    shape = BurstShape(3, (), 2, None)
    assert summarise_bursts(split_by_burst(samples([[1, 2], [3, 4]]), shape), shape) is None


@pytest.mark.parametrize(("size", "requests"), [(40, 100), (40, 60), (10, 100), (8, 20)])
def test_answers_from_a_pool_of_threads_come_in_waves(size: int, requests: int) -> None:
    chance = np.random.default_rng(1)
    times = [(rank // size + 1) * 50 * MS + (rank % size) * MS // 10 for rank in range(requests)]
    by_rank = sorted(time + int(chance.integers(0, MS)) for time in times)
    found = find_waves(by_rank)
    assert found is not None
    assert found.size == size
    assert found.step_ns == pytest.approx(50 * MS, rel=0.03)


@pytest.mark.parametrize(
    "by_rank",
    [
        pytest.param([51 * MS * (rank + 1) for rank in range(100)], id="one after another"),
        pytest.param([50 * MS + rank * MS // 5 for rank in range(100)], id="together"),
        pytest.param([50 * MS] * 10 + [100 * MS] * 50, id="groups that grow"),
        pytest.param([50 * MS] * 40 + [100 * MS] * 7 + [150 * MS] * 40, id="groups of unequal size"),
        pytest.param([50 * MS] * 99 + [500 * MS], id="a straggler"),
        pytest.param([50 * MS], id="a single answer"),
    ],
)
def test_other_answers_do_not(by_rank: list[int]) -> None:
    assert find_waves(by_rank) is None


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=120))
def test_waves_are_never_larger_than_the_burst(times: list[int]) -> None:
    found = find_waves(sorted(times))
    assert found is None or (2 <= found.size <= len(times) and found.step_ns > 0)
