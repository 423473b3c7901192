"""What a run has seen so far: counted in each generator process, added up in one, told once a second."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

import gevent
import numpy as np
import numpy.typing as npt

from timesplit.loadgen.records import UNKNOWN, Records

_PER_DOUBLING: Final = 32  # buckets: 2.2 % wide, so a quantile is within 1.1 %; it is a progress display
_SMALLEST: Final = 10  # the first bucket is below 2 ** 10 ns
_BUCKETS: Final = 31 * _PER_DOUBLING  # the last one is above 2 ** 41 ns, 37 minutes


class Tally:
    """Counts of attempts, and a histogram of response times after the warm-up.

    Attributes:
        stage: the stage that is running.
        begun: attempts begun.
        answered: attempts that got an answer, whatever its status.
        errors: attempts that are errors.
    """

    def __init__(self, stage: str = "") -> None:
        self.stage, self.begun, self.answered, self.errors = stage, 0, 0, 0
        self._buckets: npt.NDArray[np.int64] = np.zeros(_BUCKETS, np.int64)

    def add(self, records: Records, warm_from: int) -> None:
        """Count the response times of the answers to what was due at `warm_from` (ns) or later."""
        warm = records[(records["done"] != UNKNOWN) & (records["intended"] >= warm_from)]
        response_ns = np.maximum(warm["done"] - warm["intended"], 1)
        bucket = ((np.log2(response_ns) - _SMALLEST) * _PER_DOUBLING).astype(np.int64)
        self._buckets += np.bincount(np.clip(bucket, 0, _BUCKETS - 1), minlength=_BUCKETS)

    def quantile_ms(self, share: float) -> float | None:
        """Return the response time in ms below which this share of them lies; None if there are none."""
        total = int(self._buckets.sum())
        if not total:
            return None
        rank = max(1, math.ceil(share * total))
        bucket = int(np.searchsorted(np.cumsum(self._buckets), rank))
        return float(2 ** ((bucket + 0.5) / _PER_DOUBLING + _SMALLEST) / 1e6)

    def message(self) -> dict[str, Any]:
        """Return the tally as plain data, to be sent to the process that adds up."""
        seen = np.flatnonzero(self._buckets)
        counts = self._buckets[seen]
        plain = {name: getattr(self, name) for name in ("stage", "begun", "answered", "errors")}
        return plain | {"buckets": list(zip(seen.tolist(), counts.tolist(), strict=True))}

    @classmethod
    def sum_of(cls, messages: Iterable[dict[str, Any]]) -> "Tally":
        """Add up what several processes have sent. Their stage is that of the last one."""
        total = cls()
        for message in messages:
            total.stage = message["stage"]
            for name in ("begun", "answered", "errors"):
                setattr(total, name, getattr(total, name) + message[name])
            for bucket, count in message["buckets"]:
                total._buckets[bucket] += count
        return total


class ProgressFile:
    """A JSON line a second for whoever watches the run; the first one as soon as the run has a folder."""

    def __init__(self, path: Path, run: Path, tally: Callable[[], Tally]) -> None:
        """Write the first line, and one a second until `close`.

        Args:
            path: the file; lines are appended.
            run: the run's folder.
            tally: returns what all generator processes have seen so far.
        """
        self._path, self._run, self._tally = path, run, tally
        self._began, self._last = monotonic_ns(), (monotonic_ns(), 0)
        self._write()
        self._writer = gevent.spawn(self._write_for_ever)

    def close(self) -> None:
        """Write the last line. A second time, one with what other processes have told since."""
        self._writer.kill()
        self._write()

    def _write_for_ever(self) -> None:
        while True:
            gevent.sleep(1)
            self._write()

    def _write(self) -> None:
        now, tally = monotonic_ns(), self._tally()
        before, answered = self._last
        self._last = now, tally.answered
        line = {
            "run": str(self._run),
            "elapsed": round((now - self._began) / 1e9, 3),
            "stage": tally.stage,
            "begun": tally.begun,
            "answered": tally.answered,
            "errors": tally.errors,
            "rate": round((tally.answered - answered) * 1e9 / max(1, now - before), 1),
            "p99_ms": tally.quantile_ms(0.99),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
