"""Numbers for people: milliseconds with three digits, aligned at the decimal point."""

from typing import Final

from timesplit.analysis.summary import Figure, Interval

UNKNOWN: Final = "unknown"
NONE: Final = "–"
# As wide as a digit and as a full stop: they keep decimal points in line where digits are of one width.
_DIGIT_SPACE: Final = "\u2007"
_POINT_SPACE: Final = "\u2008"
_DECIMALS: Final = 2


def milliseconds(nanoseconds: int | None) -> str:
    """Return a duration in ms without its unit: 5,104 or 51.2 or 0.84."""
    if nanoseconds is None:
        return NONE
    if nanoseconds == 0:
        return "0"
    value = nanoseconds / 1e6
    return f"{value:,.{_decimals(value)}f}"


def aligned(nanoseconds: int | None) -> str:
    """Return the same, padded on the right so that decimal points of a right-aligned column are in line."""
    text = milliseconds(nanoseconds)
    _, dot, fraction = text.partition(".")
    return text + ("" if dot else _POINT_SPACE) + _DIGIT_SPACE * (_DECIMALS - len(fraction))


def interval(bounds: Interval | None) -> str:
    """Return a 95 % interval in ms without its unit; empty where there is none."""
    if bounds is None:
        return ""
    return f"{milliseconds(bounds.low_ns)}–{milliseconds(bounds.high_ns)}"


def qualification(figure: Figure) -> str:
    """Return what stands beside a figure: its interval, or that it has too few samples."""
    return interval(figure.interval) if figure.enough else "too few samples"


def rate(per_second: float | None) -> str:
    """Return a rate with three digits, without its unit."""
    return NONE if per_second is None else f"{per_second:,.{_decimals(per_second)}f}"


def count(number: int | None) -> str:
    """Return a number of things."""
    return UNKNOWN if number is None else f"{number:,}"


def _decimals(value: float) -> int:
    size = abs(value)
    return 0 if size >= 99.95 else 1 if size >= 9.995 else _DECIMALS
