"""A worker's accounts as rows: arrays from the journal in, Arrow tables by run out.

Pure: no clock, no files, and no Python per request.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from timesplit.forwarder.journal import Records, Worker
from timesplit.instrumentation.layout import ENDED_BY, SPREAD, UNKNOWN
from timesplit.schema import SERVER

KEY_BYTES: Final = 8
NO_KEY: Final = bytes(KEY_BYTES)  # no run marks the request
_TRACE, _PARENT = slice(3, 35), slice(36, 52)  # where the ids stand in a traceparent
_NIBBLE: Final = np.full(256, 255, np.uint8)
for _digit, _value in zip(b"0123456789abcdef", range(16), strict=True):
    _NIBBLE[_digit] = _value

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]
Culprits = tuple[list[str | None], Numbers]


def rows_by_run(
    worker: Worker, requests: Records, texts: dict[int, str], culprits: Culprits
) -> Iterator[tuple[bytes, pa.Table]]:
    """Yield, for each run's key among the requests (NO_KEY for unmarked ones), their rows of server/.

    Args:
        worker: whose requests they are.
        requests: finished ones, as `JournalReader.take` gives them.
        texts: by number, as the worker wrote them.
        culprits: for each request, `file:line function` and what it cost, see `culprits.charge`.
    """
    if not len(requests):
        return
    rows = server_rows(worker, requests, texts, culprits)
    keys = _keys(requests)
    for key in np.unique(keys):
        yield int(key).to_bytes(KEY_BYTES, "big"), rows.filter(pa.array(keys == key))


def server_rows(worker: Worker, requests: Records, texts: dict[int, str], culprits: Culprits) -> pa.Table:
    """Return the rows of server/ of these requests, in order."""
    count = len(requests)
    trace, traced = unhex(requests["traceparent"], _TRACE)
    parent, has_parent = unhex(requests["traceparent"], _PARENT)
    client, has_client = unhex(requests["client_span"], slice(0, 16))
    columns: dict[str, Any] = {
        "trace_id": _binary(np.where(traced[:, None], trace, _random(count, 16))),
        "span_id": _binary(_big_endian(span_ids(worker.instance, requests["number"]))),
        "parent_span_id": _binary(parent, has_parent),
        "client_span_id": _binary(client, has_client),
        "method": _texts(requests["method"], texts),
        "service": pa.array([str(worker.about.get("service", ""))] * count),
        "instance": pa.array([worker.instance] * count),
        "pid": np.full(count, worker.pid),
        "seq": requests["number"] - 1,
        "http_route": _texts(requests["route"], texts),
        "status": _known(requests["status"], nothing=0),
        "ended_by": pa.array(ENDED_BY).take(pa.array(requests["ended_by"])),
        "other": _texts(requests["other"], texts),
        "culprit": pa.array(culprits[0], pa.string()),
        "culprit_ns": culprits[1],
    }
    for column in SERVER.columns:
        if column.name not in columns:
            columns[column.name] = _known(requests[column.name])
    return pa.table({name: columns[name] for name in SERVER.column_names()})


def span_ids(instance: str, numbers: Numbers) -> npt.NDArray[np.uint64]:
    """Return the span id of each request by its number: `layout.span_id` for arrays."""
    ids = np.uint64(int(instance, 16)) + numbers.astype(np.uint64) * np.uint64(
        SPREAD
    )  # wraps at 64 bits, as meant
    return np.where(ids == 0, np.uint64(1), ids)


def unhex(texts: npt.NDArray[np.bytes_], digits: slice) -> tuple[Bytes, Flags]:
    """Decode lower-case hex digits of each text.

    Args:
        texts: n byte strings of one width.
        digits: where in a text its digits stand; an even number of them.

    Returns:
        The bytes, of shape (n, digits / 2), and for each text whether all its digits were hex and not all zero.
    """
    width = texts.dtype.itemsize
    letters = np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), width)[:, digits]
    nibbles = _NIBBLE[letters]
    right: Flags = np.logical_and((nibbles < 16).all(axis=1), (nibbles > 0).any(axis=1))
    found: Bytes = np.bitwise_or(nibbles[:, ::2] << 4, nibbles[:, 1::2] & 15).astype(np.uint8)
    return found, right


def _keys(requests: Records) -> npt.NDArray[np.uint64]:
    """Return the upper 64 bits of each trace id, 0 for requests that no generator of ours marked."""
    trace, traced = unhex(requests["traceparent"], _TRACE)
    _, marked = unhex(requests["client_span"], slice(0, 16))
    upper = np.ascontiguousarray(trace[:, :KEY_BYTES]).view(">u8").reshape(-1).astype(np.uint64)
    return np.where(traced & marked, upper, np.uint64(0))


def _binary(rows: Bytes, known: Flags | None = None) -> pa.Array:
    width = rows.shape[1]
    data = pa.py_buffer(np.ascontiguousarray(rows).tobytes())
    array = pa.Array.from_buffers(pa.binary(width), len(rows), [None, data])
    return array if known is None else pc.if_else(pa.array(known), array, pa.scalar(None, pa.binary(width)))


def _big_endian(numbers: npt.NDArray[np.uint64]) -> Bytes:
    return numbers.astype(">u8").view(np.uint8).reshape(len(numbers), 8)


def _random(count: int, width: int) -> Bytes:
    return np.random.default_rng().integers(0, 256, (count, width), np.uint8)


def _known(numbers: Numbers, nothing: int = UNKNOWN) -> pa.Array:
    return pa.array(np.ascontiguousarray(numbers), mask=numbers == nothing)


def _texts(numbers: Numbers, texts: dict[int, str]) -> pa.Array:
    """Look texts up: few distinct ones, so by dictionary. Number 0 is NULL."""
    distinct, index = np.unique(numbers, return_inverse=True)
    names = [texts.get(int(number)) or None for number in distinct]
    return pa.array(names, pa.string()).take(pa.array(index))
