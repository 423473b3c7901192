"""Keeps the records of one run in one generator process, and writes them without stopping a request.

The request's path appends a packed record to a buffer. Every two seconds a greenlet hands what has gathered
to a native thread, which makes columns of it and writes them: neither the disk nor the compression is ever
waited for. All else here is called from gevent's own thread, so the buffers need no lock.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic_ns
from typing import Any, Final, Literal

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from timesplit.loadgen.attempt import UNFINISHED, Attempt, Call
from timesplit.loadgen.progress import Tally
from timesplit.loadgen.records import PACKED, UNKNOWN, Records, Texts, read_records, to_arrow
from timesplit.loadgen.spans import SpanSender
from timesplit.loadgen.streams import Stream
from timesplit.runfolder import FLUSH_SECONDS, TableWriter
from timesplit.schema import CLIENT, STREAMS, TABLES, Table

_log = logging.getLogger(__name__)
_BUFFER: Final = 4096 * PACKED.size  # 330 kB: half a second of a busy process


@dataclass
class Batch:
    """What has gathered since the last flush: packed records, and rows of the tables that grow slowly."""

    buffers: list[bytes] = field(default_factory=list)
    rows: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)


class Recorder:
    """The records of one run in one process.

    Attributes:
        run: the run's folder.
        key: the run's key, 8 bytes.
        instance: random id of this process.
        tally: what has been seen so far, for the progress line.
    """

    def __init__(
        self, run: Path, key: bytes, instance: str, warm_from: int, spans: SpanSender | None
    ) -> None:
        """Start to record.

        Args:
            run: the run's folder.
            key: the run's key.
            instance: random id of this process.
            warm_from: when the warm-up ends, in CLOCK_MONOTONIC ns: the tally's p99 begins there.
            spans: where client spans go, if anywhere.
        """
        self.run, self.key, self.instance, self.tally = run, key, instance, Tally()
        self._warm_from, self._spans = warm_from, spans
        self._random = Random()  # its own: a scenario may seed the global one, and ids must not repeat
        self._names, self._words = Texts(), Texts()
        self._open: set[Attempt] = set()
        self._streams: set[Stream] = set()
        self._stage = 0
        self._batch, self._buffer, self._filled = Batch(), bytearray(_BUFFER), 0
        self._writers: dict[str, TableWriter] = {}
        self._thread, self._closing = ThreadPool(1), Event()
        self._flusher = gevent.spawn(self._flush_until_closing)

    @property
    def written(self) -> int:
        """Rows of `client/` that are on disk."""
        writer = self._writers.get(CLIENT.name)
        return writer.rows if writer else 0

    def enter(self, stage: str) -> None:
        """Begin a stage: attempts that begin from now on belong to it."""
        self.tally.stage, self._stage = stage, self._words.number(stage)

    def new_id(self) -> bytes:
        """Return 8 random bytes that are not all zero."""
        return (self._random.getrandbits(64) or 1).to_bytes(8, "big")

    def begin(self, call: Call, method: str) -> Attempt:
        """Begin an attempt of a call: from now on it is a row, whatever comes."""
        if call.last is not None:
            self._settle(call.last, call.last.error)
        call.last = attempt = Attempt(call, method, self._stage, self.new_id(), self.new_id())
        self._open.add(attempt)
        self.tally.begun += 1
        return attempt

    def answered(self, attempt: Attempt, status: int, size: int) -> None:
        """End an attempt: the last byte of its answer has come, or nobody wants the rest."""
        if attempt.ended == UNKNOWN:
            attempt.done = attempt.ended = attempt.call.due = monotonic_ns()
            attempt.status, attempt.bytes = status, size
            attempt.error = "status" if status >= 400 else None
            if not attempt.call.judged:
                self._settle(attempt, attempt.error)

    def failed(self, attempt: Attempt, error: str, status: int = UNKNOWN, size: int = UNKNOWN) -> None:
        """End an attempt that got no complete answer."""
        if attempt.ended == UNKNOWN:
            attempt.ended = attempt.call.due = monotonic_ns()
            attempt.status, attempt.bytes = status, size
            self._settle(attempt, error)

    def judge(self, attempt: Attempt, failure: str | None) -> None:
        """Take the scenario's own word for it: None is right, whatever the status."""
        self._settle(attempt, failure)

    def add(self, table: Table, row: Mapping[str, Any]) -> None:
        """Add a row to one of the tables that grow slowly."""
        self._batch.rows.setdefault(table.name, []).append(row)

    def open_stream(
        self, trace_id: bytes, span_id: bytes, name: str, kind: Literal["sse", "websocket"], opened: int
    ) -> Stream:
        """Begin a stream: from now on it is a row, whatever comes."""
        stream = Stream(trace_id, span_id, name, self.tally.stage, kind, opened)
        self._streams.add(stream)
        return stream

    def close_stream(self, stream: Stream, code: int | None, error: str | None) -> None:
        """Record a stream that has ended; see `Stream.row`. A second time does nothing."""
        if stream in self._streams:
            self._streams.remove(stream)
            self.add(STREAMS, stream.row(code, error))

    def flush(self) -> None:
        """Write what has gathered. Waits, but only the greenlet that calls it."""
        batch = self._take()
        try:
            records = self._thread.apply(self._write, (batch,))
        except Exception:
            # The run goes on: `forwarded` in hosts/ will say how many rows are missing.
            _log.exception("timesplit: %s: records could not be written", self.run)
            return
        if self._spans and len(records):
            self._spans.offer(records, self._names, self._words)

    def settle_open(self) -> None:
        """Make rows of what is still open: the run is over."""
        for attempt in list(self._open):
            self.failed(attempt, UNFINISHED)
            self._settle(attempt, attempt.error)  # those that were answered and never judged
        for stream in list(self._streams):
            self.close_stream(stream, None, UNFINISHED)

    def close(self) -> None:
        """Write the rest and stop."""
        self._closing.set()
        self._flusher.join()
        self._thread.kill()

    def _settle(self, attempt: Attempt, error: str | None) -> None:
        if attempt not in self._open:
            return
        self._open.remove(attempt)
        self.tally.answered += attempt.status != UNKNOWN
        self.tally.errors += error is not None
        if self._filled == _BUFFER:
            self._turn_over()
        call, words = attempt.call, self._words
        call.last = None  # or the two would keep one another alive until the garbage collector comes
        PACKED.pack_into(
            self._buffer,
            self._filled,
            attempt.trace,
            attempt.span,
            self._names.number(call.name),
            attempt.stage,
            words.number(attempt.method),
            words.number(error or ""),
            attempt.status,
            attempt.reused,
            UNKNOWN if call.burst is None else call.burst.number,
            attempt.intended,
            attempt.sent,
            attempt.first_byte,
            attempt.done,
            attempt.ended,
            attempt.connect_ns,
            attempt.bytes,
        )
        self._filled += PACKED.size

    def _turn_over(self) -> None:
        self._batch.buffers.append(bytes(self._buffer[: self._filled]))
        self._filled = 0

    def _take(self) -> Batch:
        self._turn_over()
        batch, self._batch = self._batch, Batch()
        return batch

    def _flush_until_closing(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self.flush()
        self.flush()

    def _write(self, batch: Batch) -> Records:
        """Write a batch, in the native thread."""
        records = read_records(batch.buffers)
        self.tally.add(records, self._warm_from)
        self._writer(CLIENT).write(to_arrow(records, self.key, self._names, self._words, self.instance))
        for name, rows in batch.rows.items():
            self._writer(TABLES[name]).write_rows(rows)
        return records

    def _writer(self, table: Table) -> TableWriter:
        if table.name not in self._writers:
            self._writers[table.name] = TableWriter(self.run, table, self.instance)
        return self._writers[table.name]
