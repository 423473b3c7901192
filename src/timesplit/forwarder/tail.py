"""Follows the journals of a host: what workers append is sorted into run folders, and exported.

Each worker's records are gathered for a window, since what is kept of it depends on all of it; then its rows are
written, its kept requests become spans, and all of its requests are counted in the metrics.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics, ScopeMetrics

from timesplit import runfolder
from timesplit.forwarder.accounts import (
    KEY_BYTES,
    after_rows,
    crowd_rows,
    foreign_spans,
    killed_rows,
    run_keys,
    segment_rows,
    server_rows,
    step_rows,
    stream_rows,
)
from timesplit.forwarder.culprits import VICTIMS, WORTH_NAMING, Charges, Steps
from timesplit.forwarder.folder import Folder
from timesplit.forwarder.histograms import PartHistograms
from timesplit.forwarder.journal import Batch, JournalReader, Records, Worker
from timesplit.forwarder.keep import CULPRIT, Policy, why_kept
from timesplit.forwarder.stories import SCOPE, Story, Stretch, resource_spans, spans
from timesplit.parts import SERVER_PARTS
from timesplit.schema import AFTER, CROWD, HOSTS, SEGMENTS, SERVER, STEPS, STREAMS

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
BATCHES_HELD: Final = 600  # of a worker without requests: a minute of its steps
Export = Callable[[str, bytes, int], None]  # signal, body, how many spans it holds
_VICTIM_NAMES: Final = {SERVER_PARTS[code].name for code in VICTIMS}


@dataclass(slots=True)
class _Followed:
    """A worker's journal, and what was read of it since the last window."""

    reader: JournalReader
    histograms: PartHistograms
    steps: Steps = field(default_factory=Steps)
    window: list[Batch] = field(default_factory=list)
    written: dict[int, int] = field(default_factory=dict)  # by run's key: rows of server/
    lost: dict[int, int] = field(default_factory=dict)  # by run's key: records that found no slot
    dropped: int = 0  # of these, in all


class Tail:
    """All journals of a folder. Not safe for concurrent calls.

    Attributes:
        instances: of all workers whose journals were found, those that have ended too. Any thread may look there.
    """

    def __init__(
        self, journals: Path, runs: Path, instance: str, boot_id: str, policy: Policy, export: Export | None
    ) -> None:
        """Begin; nothing is read before the first `poll`.

        Args:
            journals: where the workers' journals are.
            runs: where run folders lie.
            instance: of this process; part of the file names that it writes.
            boot_id: of this host.
            policy: what is kept.
            export: takes OTLP bodies, or None.
        """
        self._journals, self._runs = journals, runs
        self._instance, self._boot_id = instance, boot_id
        self._policy, self._export = policy, export
        self.instances: set[str] = set()
        self._followed: dict[Path, _Followed] = {}
        self._folders: dict[int, Folder] = {0: Folder(runs / runfolder.UNCLAIMED, instance)}

    def poll(self) -> None:
        """Take what the workers have finished since the last time."""
        self._find()
        for followed in self._followed.values():
            batch = followed.reader.take()
            followed.steps.add(batch.steps)
            followed.window.append(batch)

    def flush(self, seconds: float, now_utc: int) -> None:
        """End a window: write its rows, export what is kept, and let go of workers that have ended.

        Args:
            seconds: length of the window.
            now_utc: UTC nanoseconds since 1970.
        """
        for path, followed in list(self._followed.items()):
            dead = followed.reader.is_dead()
            if dead:  # what it wrote between the last poll and its end
                batch = followed.reader.take()
                followed.steps.add(batch.steps)
                followed.window.append(batch)
            self._write(followed, seconds, now_utc)
            if dead:
                self._bury(path, followed, now_utc)

    def _find(self) -> None:
        for path in sorted(self._journals.glob("*.journal")):
            if path not in self._followed:
                try:
                    reader = JournalReader(path)
                except (ValueError, OSError):
                    continue  # its worker has not finished the header yet, or it is none of ours
                self.instances.add(reader.worker.instance)
                self._followed[path] = _Followed(reader, PartHistograms(reader.worker.utc))

    def _write(self, followed: _Followed, seconds: float, now_utc: int) -> None:
        batch = _joined(followed.window[-BATCHES_HELD:])
        if not len(batch.requests) and not len(batch.streams):
            return  # steps wait for a request that tells to which run they belong
        followed.window = []
        reader = followed.reader
        self._sort_streams(followed, batch)
        if len(batch.requests):
            charges = followed.steps.charge(batch.requests, reader.texts)
            rows = server_rows(reader.worker, batch.requests, reader.texts, charges)
            why = why_kept(rows, seconds, self._policy)
            _keep_culprits(why, batch.requests, charges)
            followed.histograms.add(rows)
            self._sort(followed, batch, rows, why)
            self._tell(followed, batch, rows, why, charges, now_utc)
        self._write_hosts(followed, now_utc)

    def _sort(self, followed: _Followed, batch: Batch, rows: pa.Table, why: list[str | None]) -> None:
        """Write the window's rows to the folders of their runs."""
        keys = run_keys(batch.requests)
        kept = np.array([reason is not None for reason in why])
        texts, worker = followed.reader.texts, followed.reader.worker
        for key in np.unique(keys).tolist():
            folder, mine = self._folder(key), keys == key
            self._append(folder, SERVER, rows.filter(pa.array(mine)))
            segments = segment_rows(batch.requests, batch.more, rows, kept & mine, texts)
            self._append(folder, SEGMENTS, segments)
            self._append(folder, STEPS, step_rows(worker, batch.steps, texts))
            self._append(folder, CROWD, crowd_rows(worker, batch.crowd, texts))
            self._append(folder, AFTER, after_rows(worker, batch.after, texts))
            followed.written[key] = followed.written.get(key, 0) + int(mine.sum())

    def _sort_streams(self, followed: _Followed, batch: Batch) -> None:
        rows = stream_rows(followed.reader.worker, batch.streams, followed.reader.texts)
        keys = run_keys(batch.streams)
        for key in np.unique(keys).tolist():
            self._append(self._folder(key), STREAMS, rows.filter(pa.array(keys == key)))

    def _folder(self, key: int) -> Folder:
        if key not in self._folders:
            path = runfolder.find_run(self._runs, key.to_bytes(KEY_BYTES, "big"))
            if path is None:  # no generator here has begun such a run
                return self._folders[0]
            self._folders[key] = Folder(path, self._instance)
        return self._folders[key]

    def _append(self, folder: Folder, table: Any, rows: pa.Table) -> None:
        if rows.num_rows:
            folder.append(table, rows)

    def _tell(
        self,
        followed: _Followed,
        batch: Batch,
        rows: pa.Table,
        why: list[str | None],
        charges: Charges,
        now_utc: int,
    ) -> None:
        """Export the kept requests as spans, and all of them as metrics."""
        if self._export is None:
            return
        worker = followed.reader.worker
        stories = list(_stories(followed.reader, batch, rows, why, charges))
        made = spans(stories, worker.utc - worker.monotonic)
        if made:
            request = ExportTraceServiceRequest(resource_spans=[resource_spans(made, _resource(worker))])
            self._export("traces", request.SerializeToString(), len(made))
        scope = ScopeMetrics(metrics=list(followed.histograms.metrics(now_utc)))
        scope.scope.name = SCOPE
        metrics = ResourceMetrics(
            resource=resource_spans([], _resource(worker)).resource, scope_metrics=[scope]
        )
        self._export(
            "metrics", ExportMetricsServiceRequest(resource_metrics=[metrics]).SerializeToString(), 0
        )

    def _bury(self, path: Path, followed: _Followed, now_utc: int) -> None:
        """Report what died with a worker, and remove its journal."""
        reader = followed.reader
        killed = reader.open_requests()
        if len(killed):
            log.warning("worker %d ended with %d requests open", reader.worker.pid, len(killed))
            rows, keys = killed_rows(reader.worker, killed, reader.texts), run_keys(killed)
            for key in np.unique(keys).tolist():
                self._append(self._folder(key), SERVER, rows.filter(pa.array(keys == key)))
                followed.written[key] = followed.written.get(key, 0) + int((keys == key).sum())
            self._write_hosts(followed, now_utc)
        reader.close()
        path.unlink(missing_ok=True)
        del self._followed[path]

    def _write_hosts(self, followed: _Followed, now_utc: int) -> None:
        """Say in each run how many of the worker's records are there, and how many were dropped."""
        counts = followed.reader.counts
        # A record that found no slot tells no run: it is counted for the latest one.
        latest = next(reversed(followed.written), 0)
        followed.lost[latest] = followed.lost.get(latest, 0) + counts.dropped - followed.dropped
        followed.dropped = counts.dropped
        worker = followed.reader.worker
        for key, written in followed.written.items():
            lost = followed.lost.get(key, 0)
            row = {
                "instance": worker.instance,
                "role": "worker",
                "pid": worker.pid,
                "host": str(worker.about.get("host", "")),
                "boot_id": str(worker.about.get("boot_id") or self._boot_id),
                "service": str(worker.about.get("service", "")),
                "monotonic": now_utc - worker.utc + worker.monotonic,
                "utc": now_utc,
                "written": written + lost,
                "forwarded": written,
                "dropped": lost,
                "versions": json.dumps(worker.about.get("versions", {})),
                "configuration": json.dumps(
                    {name: worker.about.get(name) for name in ("traces", "core", "hooks")}
                    | {"failed": counts.failed, "refused": counts.refused}
                ),
            }
            self._folder(key).append(HOSTS, [row])


def _joined(window: list[Batch]) -> Batch:
    return Batch(*(np.concatenate([getattr(batch, name) for batch in window]) for name in Batch.__slots__))


def _keep_culprits(why: list[str | None], requests: Records, charges: Charges) -> None:
    """A kept victim keeps its culprit, as far as it is in the same window: so links never dangle."""
    position = {number: at for at, number in enumerate(requests["number"].tolist())}
    for at, reason in enumerate(list(why)):
        culprit = position.get(int(charges.numbers[at])) if reason else None
        if culprit is not None and why[culprit] is None:
            why[culprit] = CULPRIT


def _stories(
    reader: JournalReader, batch: Batch, rows: pa.Table, why: list[str | None], charges: Charges
) -> Iterator[Story]:
    kept = np.array([reason is not None for reason in why])
    found = segment_rows(batch.requests, batch.more, rows, kept, reader.texts).to_pylist()
    by_span: dict[bytes, list[dict[str, Any]]] = {}
    for segment in found:
        by_span.setdefault(segment["span_id"], []).append(segment)
    ids = {number: at for at, number in enumerate(batch.requests["number"].tolist()) if kept[at]}
    foreign = foreign_spans(batch.requests)
    for at, row in zip(np.flatnonzero(kept).tolist(), rows.filter(pa.array(kept)).to_pylist(), strict=True):
        if at in foreign and foreign[at] is None:
            continue
        link = _server_span(rows, foreign, ids.get(int(charges.numbers[at])))
        stretches = [_stretch(segment, row["culprit"], link) for segment in by_span.get(row["span_id"], [])]
        run = {"timesplit.run": row["trace_id"][:KEY_BYTES].hex()}
        row["trace_id"], row["span_id"] = foreign.get(at) or (row["trace_id"], row["span_id"])
        yield Story(row, why[at] or "", stretches, run, at in foreign)


def _server_span(
    rows: pa.Table, foreign: Mapping[int, tuple[bytes, bytes] | None], at: int | None
) -> tuple[bytes, bytes] | None:
    """Return the ids of a request's server span, whoever makes it; None where nobody does."""
    if at is None or at in foreign:
        return None if at is None else foreign[at]
    return rows["trace_id"][at].as_py(), rows["span_id"][at].as_py()


def _stretch(segment: dict[str, Any], culprit: str | None, link: tuple[bytes, bytes] | None) -> Stretch:
    long = segment["ended"] - segment["started"] >= WORTH_NAMING
    blamed = culprit if long and segment["part"] in _VICTIM_NAMES else None
    times = segment["started"], segment["ended"]
    return Stretch(segment["part"], segment["label"], *times, blamed, link if blamed else None)


def _resource(worker: Worker) -> dict[str, str]:
    return {
        "service.name": str(worker.about.get("service", "")),
        "service.instance.id": worker.instance,
        "process.pid": str(worker.pid),
        "host.name": str(worker.about.get("host", "")),
    }
