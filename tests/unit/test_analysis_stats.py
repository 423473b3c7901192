import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as distributions

from timesplit.analysis import stats
from timesplit.analysis.stats import ENOUGH_SAMPLES, Nanoseconds
from timesplit.analysis.summary import Interval

MS = 1_000_000
VALUES = st.lists(st.integers(0, 10**12), min_size=1, max_size=400)
SHARES = st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999])


def nanoseconds(values: list[int]) -> Nanoseconds:
    return np.array(values, np.int64)


@given(VALUES, SHARES)
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(values: list[int], p: float) -> None:
    found = stats.quantile(np.sort(nanoseconds(values)), p)

    assert found in values
    assert sum(value <= found for value in values) >= p * len(values) - 1e-6
    assert sum(value < found for value in values) < p * len(values)


@pytest.mark.parametrize("n", [1, 20, 100, 1000, 12_345])
@pytest.mark.parametrize("p", [0.5, 0.95, 0.99])
def test_a_quantile_is_that_of_numpy_without_interpolation(n: int, p: float) -> None:
    values = np.arange(n, dtype=np.int64)
    assert stats.quantile(values, p) == np.quantile(values, p, method="inverted_cdf")


@pytest.mark.parametrize("p", ENOUGH_SAMPLES)
def test_enough_samples_are_as_many_as_an_interval_needs_at_all(p: float) -> None:
    # With fewer, all values lie below the quantile more often than the 2.5 % of an interval's upper side.
    assert ENOUGH_SAMPLES[p] == next(n for n in range(1, 1000) if p**n <= 0.025)


@pytest.mark.parametrize("n", [71, 72, 367, 368])
def test_what_has_too_few_samples_says_so(n: int) -> None:
    values = np.arange(n, dtype=np.int64)
    found = stats.distribution(values, values)
    assert found is not None
    assert (found.p95.enough, found.p99.enough) == (n >= 72, n >= 368)
    assert found.n == n
    assert found.max_ns == n - 1


def test_nothing_measured_has_no_distribution() -> None:
    nothing = nanoseconds([])
    assert stats.distribution(nothing, nothing) is None
    assert stats.distribution_of_bursts([]) is None


def queue(seed: int, requests: int, load: float) -> tuple[Nanoseconds, Nanoseconds]:
    """Arrivals and response times of an M/M/1 queue with a mean service of 1 ms, its beginning cut off."""
    chance = np.random.default_rng(seed)
    cut = 2_000
    gaps, service = chance.exponential(1 / load, requests + cut), chance.exponential(1, requests + cut)
    # Lindley: the wait is a random walk held at 0, and so the walk less its running minimum.
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps[1:])])
    response = walk - np.minimum(np.minimum.accumulate(walk), 0) + service
    return (np.cumsum(gaps)[cut:] * MS).astype(np.int64), (response[cut:] * MS).astype(np.int64)


def order_statistic_interval(values: Nanoseconds, p: float) -> tuple[int, int]:
    """The usual interval, right only where requests do not depend on one another."""
    ordered, half = np.sort(values), 1.96 * math.sqrt(len(values) * p * (1 - p))
    middle = len(values) * p
    return int(ordered[math.floor(middle - half)]), int(ordered[math.ceil(middle + half)])


@pytest.mark.parametrize(("p", "least"), [(0.95, 0.90), (0.99, 0.88)])
def test_intervals_hold_the_truth_of_a_queue_at_about_their_nominal_rate(p: float, least: float) -> None:
    truth = -math.log(1 - p) / (1 - 0.5) * MS
    held, naive, given = 0, 0, 0
    for seed in range(200):
        times, values = queue(seed, 36_000, load=0.5)
        low, high = order_statistic_interval(values, p)
        naive += low <= truth <= high
        if found := stats.interval_over_time(times, values, p):
            given += 1
            held += found.low_ns <= truth <= found.high_ns

    assert given >= 180
    assert least <= held / given <= 0.99
    assert naive / 200 <= 0.75, "requests of this queue do not depend on one another: nothing was tested"


def test_an_interval_is_not_given_where_blocks_are_too_small() -> None:
    times, values = queue(1, 19_000, load=0.5)
    assert stats.interval_over_time(times, values, 0.99) is None
    assert stats.interval_over_time(times, values, 0.95) is not None


def test_an_interval_is_not_given_where_neighbouring_blocks_depend_on_one_another() -> None:
    times, values = queue(1, 36_000, load=0.5)
    slowing = values + np.linspace(0, 20 * MS, len(values)).astype(np.int64)
    assert stats.interval_over_time(times, values, 0.95) is not None
    assert stats.interval_over_time(times, slowing, 0.95) is None


def test_an_interval_is_about_the_quantile_of_all_values() -> None:
    times, values = queue(2, 36_000, load=0.5)
    found = stats.interval_over_time(times, values, 0.95)
    assert found is not None
    overall = stats.quantile(np.sort(values), 0.95)
    assert (found.low_ns + found.high_ns) / 2 == pytest.approx(overall, abs=1)
    assert found.unit == "blocks"
    assert 20 <= found.blocks <= 30


def test_the_same_value_over_and_over_has_an_interval_of_no_width() -> None:
    times = np.arange(6_000, dtype=np.int64)
    assert stats.interval_over_time(times, np.full(6_000, 7), 0.95) == Interval(7, 7, 30, "blocks")


@given(st.integers(1, 50), st.integers(0, 10**9))
def test_bursts_are_the_unit_however_many_requests_each_has(copies: int, offset: int) -> None:
    bursts = [nanoseconds(list(range(offset + n, offset + 100 + n))) for n in range(10)]
    repeated = [np.repeat(burst, copies) for burst in bursts]
    assert stats.interval_over_bursts(repeated, 0.95) == stats.interval_over_bursts(bursts, 0.95)


def test_an_interval_over_bursts_is_that_of_student_over_their_quantiles() -> None:
    bursts = [np.arange(100, dtype=np.int64) * MS + 10 * MS * n for n in range(10)]
    found = stats.interval_over_bursts(bursts, 0.95)
    each = np.array([94 + 10 * n for n in range(10)])
    overall = stats.quantile(np.sort(np.concatenate(bursts)), 0.95) / MS
    half = distributions.t.ppf(0.975, 9) * math.sqrt(np.sum((each - overall) ** 2) / 9 / 10)
    assert found is not None
    assert (found.low_ns / MS, found.high_ns / MS) == pytest.approx((overall - half, overall + half))
    assert (found.blocks, found.unit) == (10, "bursts")


def test_too_few_or_too_small_bursts_give_no_interval() -> None:
    bursts = [np.arange(99, dtype=np.int64)] * 10
    assert stats.interval_over_bursts(bursts[:5], 0.95) is None
    assert stats.interval_over_bursts(bursts, 0.95) is not None
    assert stats.interval_over_bursts(bursts, 0.99) is None


@pytest.mark.parametrize(("n", "ends"), [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (30, (10, 21))])
def test_the_interval_of_a_median_is_that_of_the_tables(n: int, ends: tuple[int, int]) -> None:
    found = stats.interval_of_median(np.arange(1, n + 1, dtype=np.int64))
    assert found is not None
    assert (found.low_ns, found.high_ns) == ends


def test_five_bursts_are_too_few_for_an_interval() -> None:
    assert stats.interval_of_median(nanoseconds([1, 2, 3, 4, 5])) is None


def test_neighbours_that_rise_together_correlate() -> None:
    assert stats.lag_1(np.arange(30.0)) > 0.8
    assert stats.lag_1(np.tile([0.0, 1.0], 15)) < -0.8
    assert stats.lag_1(np.ones(30)) == 0


@given(VALUES)
def test_figures_of_a_distribution_are_in_order(values: list[int]) -> None:
    ordered = nanoseconds(values)
    found = stats.distribution(np.arange(len(values), dtype=np.int64), ordered)
    assert found is not None
    figures = [found.p50.value_ns, found.p95.value_ns, found.p99.value_ns, found.max_ns]
    assert all(a <= b for a, b in pairwise(figures))
