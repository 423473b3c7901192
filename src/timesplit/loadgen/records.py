"""The compact form of a client record, and how a batch of them becomes an Arrow table.

On the request's path an attempt is one `struct.pack_into`; everything that costs more happens later, in
another thread and as whole columns.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from timesplit.runfolder import arrow_schema
from timesplit.schema import CLIENT

UNKNOWN: Final = -1  # NULL, in the fields that cannot be negative
MOST_TEXTS: Final = 1000  # distinct names that are kept; a raw path as name must not fill the memory
OTHER: Final = "other"

_FIELDS = (
    ("trace", "8s", "V8"),  # lower half; the upper half is the run's key
    ("span", "8s", "V8"),
    ("name", "I", "<u4"),
    ("stage", "H", "<u2"),
    ("method", "H", "<u2"),
    ("error", "H", "<u2"),
    ("status", "h", "<i2"),
    ("reused", "b", "i1"),
    ("burst", "i", "<i4"),
    ("intended", "q", "<i8"),
    ("sent", "q", "<i8"),
    ("first_byte", "q", "<i8"),
    ("done", "q", "<i8"),
    ("ended", "q", "<i8"),  # done, or when it failed: where the client span ends
    ("connect_ns", "q", "<i8"),
    ("bytes", "q", "<i8"),
)
PACKED: Final = struct.Struct("<" + "".join(code for _, code, _ in _FIELDS))
RECORD: Final = np.dtype([(name, kind) for name, _, kind in _FIELDS])

Records = npt.NDArray[np.void]

# pyarrow imports pandas when it makes its first array: a second of work that must not fall into the run.
pa.array([], pa.string())


class Texts:
    """Texts that repeat, each known by its number. Text 0 stands for "none"."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}
        self.texts = [""]

    def number(self, text: str) -> int:
        """Return the number of a text; beyond MOST_TEXTS all further ones are `other`."""
        number = self._numbers.get(text)
        return self._add(text) if number is None else number

    def _add(self, text: str) -> int:
        if len(self.texts) > MOST_TEXTS and text != OTHER:
            return self.number(OTHER)
        self.texts.append(text)
        self._numbers[text] = len(self.texts) - 1
        return self._numbers[text]


def read_records(buffers: Sequence[bytes]) -> Records:
    """Return packed records as one array of RECORD."""
    return np.frombuffer(b"".join(buffers), dtype=RECORD)


def to_arrow(records: Records, key: bytes, names: Texts, words: Texts, generator: str) -> pa.Table:
    """Return records as rows of `client/`.

    Args:
        records: array of RECORD.
        key: the run's key, upper half of each trace id.
        names: what the numbers in `name` stand for.
        words: what those in `stage`, `method` and `error` stand for.
        generator: instance of this process.
    """
    word = pa.array(words.texts, pa.string())
    columns: dict[str, Any] = {
        "trace_id": _ids(records["trace"], key),
        "span_id": _ids(records["span"], b""),
        "generator": pa.array([generator], pa.string()).take(pa.array(np.zeros(len(records), np.int8))),
        "reused": pa.array(records["reused"] == 1, mask=records["reused"] == UNKNOWN),
        "name": pa.array(names.texts, pa.string()).take(pa.array(records["name"])),
        "stage": word.take(pa.array(records["stage"])),
        "method": word.take(pa.array(records["method"])),
        "error": word.take(pa.array(records["error"], mask=records["error"] == 0)),
    }
    whole = ("burst", "intended", "sent", "first_byte", "done", "connect_ns", "status", "bytes")
    columns |= {name: _integers(records[name]) for name in whole}
    schema = arrow_schema(CLIENT)
    return pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)


def _integers(values: npt.NDArray[Any]) -> pa.Array:
    return pa.array(values.astype(np.int64), mask=values == UNKNOWN)


def _ids(halves: npt.NDArray[Any], prefix: bytes) -> pa.Array:
    ids = np.empty((len(halves), len(prefix) + 8), np.uint8)
    ids[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    ids[:, len(prefix) :] = np.ascontiguousarray(halves).view(np.uint8).reshape(-1, 8)
    kind = pa.binary(ids.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(halves), [None, pa.py_buffer(ids.tobytes())])
