import numpy as np
import pytest

from timesplit.analysis.samples import (
    MAX_WINDOWS,
    SECOND_NS,
    UNKNOWN,
    WINDOW_P99,
    Samples,
    part_time,
    spectrum,
    windows,
)

MS = 1_000_000


def steady(per_second: int, seconds: float) -> Samples:
    """Requests at an even pace, each taking as many ms as the second it was due in."""
    at = (np.arange(int(per_second * seconds)) * SECOND_NS // per_second).astype(np.int64)
    unknown = np.full(len(at), UNKNOWN, np.int64)
    return Samples(at, (at // SECOND_NS + 1) * MS, unknown, unknown, at >= 0)


def test_a_spectrum_ends_where_the_data_end() -> None:
    found = spectrum(np.arange(1, 1001, dtype=np.int64))
    assert found is not None
    assert found.percentiles[0] == 0
    assert found.percentiles[-1] == pytest.approx(0.999)
    assert (found.values_ns[0], found.values_ns[-1]) == (1, 999)
    assert found.values_ns[found.percentiles.index(0.9)] == 900


def test_nothing_has_no_curves() -> None:
    nothing = np.empty(0, np.int64)
    assert spectrum(nothing) is None
    assert windows(Samples(nothing, nothing, nothing, nothing, nothing == 0)) is None


def test_windows_are_as_short_as_a_p99_allows() -> None:
    found = windows(steady(200, 30))
    assert found is not None
    assert found.width_ns == SECOND_NS
    assert found.counts == (200,) * 30
    assert found.p99_ns == tuple(second * MS for second in range(1, 31))

    longer = windows(steady(40, 60))
    assert longer is not None
    assert longer.width_ns == 5 * SECOND_NS
    assert None not in longer.p99_ns


def test_windows_with_too_few_requests_have_no_p99() -> None:
    found = windows(steady(3, 60))
    assert found is not None
    assert found.width_ns == SECOND_NS
    assert set(found.p99_ns) == {None}
    assert found.max_ns == tuple(second * MS for second in range(1, 61))


@pytest.mark.parametrize("seconds", [1, 59, 500, 40_000])
def test_windows_are_not_too_many_and_hold_every_request(seconds: int) -> None:
    samples = steady(2, seconds)
    found = windows(samples)
    assert found is not None
    assert len(found.counts) <= MAX_WINDOWS + 1
    assert sum(found.counts) == len(samples.at)
    assert all(
        count >= WINDOW_P99 or p99 is None for count, p99 in zip(found.counts, found.p99_ns, strict=True)
    )


def test_a_pause_leaves_a_hole() -> None:
    samples = steady(300, 30)
    found = windows(samples.only((samples.at < 10 * SECOND_NS) | (samples.at >= 20 * SECOND_NS)))
    assert found is not None
    assert [start // SECOND_NS for start in found.starts_ns] == [*range(10), *range(20, 30)]


def test_time_in_a_part_is_described_by_its_own_values() -> None:
    found = part_time(np.array([4, 0, 0, 8], np.int64))
    assert (found.n, found.mean_ns, found.p50_ns, found.max_ns) == (4, 3, 0, 8)
