import pytest

from timesplit.analysis.summary import Figure, Interval
from timesplit.report import numbers

MS = 1_000_000


@pytest.mark.parametrize(
    ("nanoseconds", "shown"),
    [
        (0, "0"),
        (12_345, "0.01"),
        (842_000, "0.84"),
        (9_994_999, "9.99"),
        (9_995_001, "10.0"),
        (51_230_000, "51.2"),
        (99_960_000, "100"),
        (5_103_700_000, "5,104"),
        (-1_500_000, "-1.50"),
        (None, "–"),
    ],
)
def test_milliseconds_have_three_digits(nanoseconds: int | None, shown: str) -> None:
    assert numbers.milliseconds(nanoseconds) == shown


def test_decimal_points_are_in_line() -> None:
    shown = [numbers.aligned(value) for value in (842_000, 51_230_000, 5_103_700_000, 0)]
    assert [len(text) - max(text.find("."), text.find("\u2008")) for text in shown] == [3] * 4


def test_beside_a_figure_stands_its_interval_or_that_samples_are_too_few() -> None:
    bounds = Interval(50 * MS, 53 * MS, 25, "blocks")
    assert numbers.qualification(Figure(51 * MS, True, bounds)) == "50.0–53.0"
    assert numbers.qualification(Figure(51 * MS, True, None)) == ""
    assert numbers.qualification(Figure(51 * MS, False, None)) == "too few samples"
