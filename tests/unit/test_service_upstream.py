import math
import random
import statistics

import pytest
from pydantic import ValidationError

from service.upstream.behaviour import Behaviour

DRAWS = 20_000


def delays(behaviour: Behaviour) -> list[float]:
    source = random.Random(1)
    return [behaviour.draw_delay(source) for _ in range(DRAWS)]


def test_fixed_delays_are_all_the_mean() -> None:
    assert set(delays(Behaviour(distribution="fixed", mean=0.02))) == {0.02}


def test_exponential_delays_have_the_mean_and_as_much_deviation() -> None:
    drawn = delays(Behaviour(distribution="exponential", mean=0.02))

    assert statistics.mean(drawn) == pytest.approx(0.02, rel=0.03)
    assert statistics.stdev(drawn) == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_lognormal_delays_have_the_mean_whatever_their_spread(sigma: float) -> None:
    drawn = delays(Behaviour(distribution="lognormal", mean=0.02, sigma=sigma))

    assert statistics.mean(drawn) == pytest.approx(0.02, rel=0.04)
    # The median of a lognormal variable is exp(mu): below the mean by the factor exp(sigma² / 2).
    assert statistics.median(drawn) == pytest.approx(0.02 * math.exp(-(sigma**2) / 2), rel=0.03)


@pytest.mark.parametrize("distribution", ["fixed", "exponential", "lognormal"])
def test_a_mean_of_zero_is_no_delay(distribution: str) -> None:
    assert delays(Behaviour.model_validate({"distribution": distribution, "mean": 0}))[:3] == [0, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [{"mean": -1}, {"mean": float("nan")}, {"failure_rate": 1.1}, {"distribution": "normal"}, {"means": 1}],
    ids=str,
)
def test_impossible_behaviour_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Behaviour.model_validate(wrong)
