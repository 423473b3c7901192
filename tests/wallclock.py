"""The wall clock of a server on this machine, on our monotonic clock."""

import time


def monotonic(utc: float) -> int:
    """Return the CLOCK_MONOTONIC ns of a UNIX time in seconds."""
    for _ in range(1000):
        before = time.monotonic_ns()
        now = time.time_ns()
        if time.monotonic_ns() - before < 10_000:  # else something came between the two readings
            break
    return round(utc * 1e9) - now + before
