"""Which traces are worth reading: errors, the slowest of each route, a share of all, and the culprits of these.

Pure, on a window of requests at a time. Statistics never read what is kept: they read all requests.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

SLOWEST: Final = 5  # of each route in each window
SHARE: Final = 0.01
SMALL: Final = 50.0  # requests a second up to which everything is kept

ALL, ERROR, SLOW, SHARED, CULPRIT = "all", "error", "slow", "share", "culprit"
_FULL: Final = 2.0**64


@dataclass(frozen=True, slots=True)
class Policy:
    """How much is kept.

    Attributes:
        share: of all requests, by the lower half of their trace id: the generator keeps the same.
        slowest: of each route in each window.
        small: requests a second up to which everything is kept.
    """

    share: float = SHARE
    slowest: int = SLOWEST
    small: float = SMALL


def why_kept(rows: pa.Table, seconds: float, policy: Policy) -> list[str | None]:
    """Return for each request of a window why it is kept, or None.

    Args:
        rows: of server/.
        seconds: length of the window.
        policy: how much to keep.
    """
    if rows.num_rows <= policy.small * seconds:
        return [ALL] * rows.num_rows
    why = np.full(rows.num_rows, None, object)
    why[_lower_half(rows["trace_id"]) < policy.share * _FULL] = SHARED
    why[_slowest(rows, policy.slowest)] = SLOW
    failed = pc.or_(
        pc.fill_null(pc.greater_equal(rows["status"], 500), False),
        pc.is_in(rows["ended_by"], value_set=pa.array(["exception", "killed"])),
    )
    why[failed.to_numpy(zero_copy_only=False)] = ERROR
    kept: list[str | None] = why.tolist()
    return kept


def _lower_half(trace_ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    data = b"".join(trace_ids.to_pylist())
    return np.frombuffer(data, ">u8").reshape(-1, 2)[:, 1].astype(np.uint64)


def _slowest(rows: pa.Table, count: int) -> npt.NDArray[np.intp]:
    """Return the positions of the slowest rows of each route."""
    began = pc.coalesce(rows["arrived"], rows["started"])
    took: Any = pc.subtract(rows["ended"], began).to_numpy()
    routes = pc.fill_null(rows["http_route"], "").combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((-took, routes))
    ends = np.flatnonzero(np.diff(routes[order], append=-1))
    starts = np.concatenate(([0], ends[:-1] + 1))
    rank = np.arange(len(order)) - np.repeat(starts, ends - starts + 1)
    slowest: npt.NDArray[np.intp] = order[rank < count]
    return slowest
