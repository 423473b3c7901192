"""Who owns the tail, on requests whose parts are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timesplit.analysis.stats import Nanoseconds
from timesplit.analysis.tail import bands, complete, tail

NOBODY = np.full(1000, None, object)
NOTHING = np.zeros(1000, np.int64)


def requests(seed: int = 0) -> tuple[Nanoseconds, dict[str, Nanoseconds]]:
    """1,000 requests of about 1 ms route and 5 ms query, of which twenty wait 200 ms for the loop."""
    random = np.random.default_rng(seed)
    route = random.normal(1e6, 1e4, 1000).astype(np.int64)
    query = random.normal(5e6, 1e5, 1000).astype(np.int64)
    loop = np.where(np.arange(1000) % 50 == 7, 200_000_000, 0)
    return route + query + loop, {"route": route, "query": query, "loop": loop}


def test_the_part_that_makes_the_slow_ones_slow_owns_the_tail() -> None:
    response, parts = requests()
    culprits, costs = NOBODY.copy(), NOTHING.copy()
    culprits[parts["loop"] > 0], costs[parts["loop"] > 0] = "bad.py:12 bad", 190_000_000
    found = tail(response, complete(response, parts), culprits, costs)
    assert found is not None
    assert (found.n, found.owner, found.culprit) == (11, "loop", "bad.py:12 bad")
    assert found.parts_ns["loop"] == pytest.approx(200e6)
    assert found.culprit_ns == pytest.approx(190e6)
    assert sum(found.parts_ns.values()) == found.excess_ns


def test_what_no_part_tells_is_unattributed() -> None:
    response, parts = requests()
    del parts["loop"]
    found = tail(response, complete(response, parts), NOBODY, NOTHING)
    assert found is not None
    assert found.owner == "unattributed"


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=300))
def test_parts_of_each_band_add_up_and_no_request_is_left_out(times: list[tuple[int, int]]) -> None:
    route, query = (np.array(column, np.int64) for column in zip(*times, strict=True))
    response = route + query + 5
    found = bands(response, complete(response, {"route": route, "query": query}))
    assert sum(band.n for band in found) == len(times)
    for band in found:
        assert sum(band.parts_ns.values()) == band.response_ns
        assert band.parts_ns["unattributed"] == 5
    assert sum(band.n * band.response_ns for band in found) == pytest.approx(
        int(response.sum()), abs=3 * len(times)
    )


def test_bands_are_ordered_by_response_time() -> None:
    response, parts = requests()
    found = bands(response, complete(response, parts))
    assert [band.n for band in found] == [500, 400, 90, 9, 1]
    assert [band.parts_ns["loop"] for band in found] == [0, 0, 22_222_222, 200_000_000, 200_000_000]


def test_too_few_requests_have_no_tail() -> None:
    few = np.arange(99)
    assert tail(few, complete(few, {}), NOBODY[:99], NOTHING[:99]) is None
