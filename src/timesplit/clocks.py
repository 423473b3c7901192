"""The host's monotonic clock: which one it is, and how it stands to UTC.

Records hold CLOCK_MONOTONIC, spans hold UTC; an anchor (two readings taken together) leads from one to other.
"""

import platform
import time
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_READINGS = 5


@dataclass(frozen=True, slots=True)
class Anchor:
    """An instant on both clocks, in nanoseconds.

    Attributes:
        monotonic: CLOCK_MONOTONIC.
        utc: since 1970, UTC.
    """

    monotonic: int
    utc: int

    def to_monotonic(self, utc: int) -> int:
        """Return the CLOCK_MONOTONIC of an instant in UTC. Wrong by each step that UTC made in between."""
        return utc - self.utc + self.monotonic


def read_anchor() -> Anchor:
    """Read both clocks together: of a few readings the one that took least, so within about 1 µs."""
    return min((_reading() for _ in range(_READINGS)), key=lambda reading: reading[0])[1]


def boot_id() -> str:
    """Return the id of the host's boot: equal ids share one CLOCK_MONOTONIC.

    Where the system tells none (macOS), the host's name stands in.
    """
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return platform.node()


def _reading() -> tuple[int, Anchor]:
    before = time.monotonic_ns()
    utc = time.time_ns()
    after = time.monotonic_ns()
    return after - before, Anchor((before + after) // 2, utc)
