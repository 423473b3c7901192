"""A worker's accounts as rows: arrays from the journal in, Arrow tables by run out.

Pure: no clock, no files, and no Python per request.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from timesplit.forwarder.culprits import Charges
from timesplit.forwarder.journal import Records, Worker
from timesplit.instrumentation import foreign
from timesplit.instrumentation.layout import ENDED_BY, SEGMENTS_INLINE, SPREAD, STREAM_KINDS, UNKNOWN
from timesplit.parts import SERVER_PARTS
from timesplit.schema import SERVER

KEY_BYTES: Final = 8
_TRACE, _PARENT = slice(3, 35), slice(36, 52)  # where the ids stand in a traceparent
_NIBBLE: Final = np.full(256, 255, np.uint8)
for _digit, _value in zip(b"0123456789abcdef", range(16), strict=True):
    _NIBBLE[_digit] = _value

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


def server_rows(worker: Worker, requests: Records, texts: dict[int, str], charges: Charges) -> pa.Table:
    """Return the rows of server/ of these requests, in order.

    Args:
        worker: whose requests they are.
        requests: as `JournalReader.take` gives them.
        texts: by number, as the worker wrote them.
        charges: who made them wait.
    """
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
        "culprit": pa.array(charges.names, pa.string()),
        "culprit_ns": _known(charges.costs),
        "doing": pa.nulls(count, pa.string()),
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


def foreign_spans(requests: Records) -> dict[int, tuple[bytes, bytes] | None]:
    """Return (trace id, span id) of server spans that the application's own tracing makes, by position of the request.

    None for one that it did not sample: nobody makes a span of that request.
    """
    found: dict[int, tuple[bytes, bytes] | None] = {}
    for at in np.flatnonzero(requests["foreign"] != foreign.NONE).tolist():
        upper, lower, span = (
            int(requests[field][at]).to_bytes(8, "big", signed=True)
            for field in ("foreign_trace_upper", "foreign_trace_lower", "foreign_span")
        )
        found[at] = (upper + lower, span) if requests["foreign"][at] == foreign.SAMPLED else None
    return found


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


def run_keys(requests: Records) -> npt.NDArray[np.uint64]:
    """Return the run's key of each request or stream: the upper half of its trace id, 0 if nobody marked it."""
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


def killed_rows(worker: Worker, requests: Records, texts: dict[int, str]) -> pa.Table:
    """Return the rows of requests that were under way when their worker died.

    Of their parts only the one that each was in is known, and that in words: they end at their last stamp.
    """
    blank = np.zeros(len(requests), requests.dtype)
    for name in ("number", "started", "traceparent", "client_span"):
        blank[name] = requests[name]
    for part in SERVER_PARTS:
        blank[part.column] = UNKNOWN
    for name in ("arrived", "route_cpu_ns", "uncertain_ns", "query_count", "upstream_count"):
        blank[name] = UNKNOWN
    blank["ended"] = np.maximum(requests["since"], requests["started"])
    blank["ended_by"] = ENDED_BY.index("killed")
    rows = server_rows(worker, blank, texts, Charges.none(len(requests)))
    doing = pa.array([part.name for part in SERVER_PARTS]).take(pa.array(requests["doing"]))
    method = pc.fill_null(rows["method"], "")
    for name, values in (("doing", doing), ("method", method)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, values)
    return rows


def segment_rows(
    requests: Records, more: Records, rows: pa.Table, kept: Flags, texts: dict[int, str]
) -> pa.Table:
    """Return the rows of segments/ of the kept requests, in order of request and time.

    Args:
        requests: all of the window.
        more: their further segments.
        rows: their rows of server/, in the same order.
        kept: which are kept.
        texts: by number.
    """
    owner, found = _segments(requests, more, np.flatnonzero(kept))
    which = pa.array(owner)
    names = pa.array([part.name for part in SERVER_PARTS])
    return pa.table(
        {
            "trace_id": rows["trace_id"].combine_chunks().take(which),
            "span_id": rows["span_id"].combine_chunks().take(which),
            "part": names.take(pa.array(found["part"])),
            "label": pc.fill_null(_texts(found["label"], texts), ""),
            "started": found["start"],
            "ended": found["end"],
        }
    )


def _segments(requests: Records, more: Records, kept: npt.NDArray[np.intp]) -> tuple[Numbers, Records]:
    """Return (position of the request, segment) of all segments of the kept requests."""
    shown = np.arange(SEGMENTS_INLINE) < requests["segments"][kept][:, None]
    row, column = np.nonzero(shown)
    owners, segments = [kept[row]], [requests["segment"][kept[row], column]]
    position = {int(requests["number"][at]): int(at) for at in kept} if len(more) else {}
    for slot in more:
        if int(slot["number"]) in position:
            rest = slot["segment"][: slot["segments"]]
            owners.append(np.full(len(rest), position[int(slot["number"])]))
            segments.append(rest)
    owner, found = np.concatenate(owners), np.concatenate(segments)
    order = np.lexsort((found["start"], owner))
    return owner[order], found[order]


def step_rows(worker: Worker, steps: Records, texts: dict[int, str]) -> pa.Table:
    """Return the rows of steps/."""
    return pa.table(
        {
            "instance": pa.array([worker.instance] * len(steps)),
            "span_id": _binary(_big_endian(span_ids(worker.instance, steps["number"])), steps["number"] > 0),
            "started": steps["started"],
            "ended": steps["ended"],
            "owner": pc.fill_null(_texts(steps["owner"], texts), ""),
            "file": _texts(steps["file"], texts),
            "line": steps["line"],
            "function": _texts(steps["function"], texts),
            "cpu_ns": _known(steps["cpu_ns"]),
        }
    )


def after_rows(worker: Worker, after: Records, texts: dict[int, str]) -> pa.Table:
    """Return the rows of after/."""
    return pa.table(
        {
            "instance": pa.array([worker.instance] * len(after)),
            "span_id": _binary(_big_endian(span_ids(worker.instance, after["number"]))),
            "route": pc.fill_null(_texts(after["route"], texts), ""),
            "started": after["started"],
            "ended": after["ended"],
            "busy_ns": after["busy_ns"],
        }
    )


def crowd_rows(worker: Worker, crowd: Records, texts: dict[int, str]) -> pa.Table:
    """Return the rows of crowd/."""
    which, place = np.nonzero(np.arange(crowd["row"].shape[1]) < crowd["rows"][:, None])
    rows = crowd["row"][which, place]
    return pa.table(
        {
            "instance": pa.array([worker.instance] * len(rows)),
            "owner": pc.fill_null(_texts(rows["owner"], texts), ""),
            "started": crowd["started"][which],
            "ended": crowd["ended"][which],
            "busy_ns": rows["busy_ns"],
        }
    )


def stream_rows(worker: Worker, streams: Records, texts: dict[int, str]) -> pa.Table:
    """Return the rows of streams/, of the server's side."""
    count = len(streams)
    trace, traced = unhex(streams["traceparent"], _TRACE)
    parent, has_parent = unhex(streams["traceparent"], _PARENT)
    return pa.table(
        {
            "trace_id": _binary(np.where(traced[:, None], trace, _random(count, 16))),
            "span_id": _binary(_big_endian(span_ids(worker.instance, streams["number"]))),
            "parent_span_id": _binary(parent, has_parent),
            "side": pa.array(["server"] * count),
            "name": pc.fill_null(_texts(streams["route"], texts), ""),
            "stage": pa.array([""] * count),
            "kind": pa.array(STREAM_KINDS).take(pa.array(streams["what"])),
            "opened": streams["opened"],
            "first": _known(streams["first"], nothing=0),
            "messages": streams["messages"],
            "closed": streams["closed"],
            "code": _known(streams["code"], nothing=0),
            "error": pa.nulls(count, pa.string()),
        }
    )
