"""The forwarder's pieces together: what comes in goes to the run folders, and on to a collector."""

import json
import logging
import os
import platform
import secrets
import threading
import time
from dataclasses import asdict
from http import HTTPStatus
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from timesplit.clocks import boot_id, read_anchor
from timesplit.errors import UsageError
from timesplit.forwarder.assembly import Assembly
from timesplit.forwarder.columns import Columns
from timesplit.forwarder.keep import Policy
from timesplit.forwarder.passon import Body, PassOn, pass_on_from
from timesplit.forwarder.receiver import Receiver, Refused, Take
from timesplit.forwarder.spans import Process, read_spans
from timesplit.forwarder.tail import POLL_SECONDS, Tail
from timesplit.runfolder import FLUSH_SECONDS

log = logging.getLogger(__name__)

RECEIVE_SECONDS: Final = 2.0  # at the end: for requests that are being received …
PASS_ON_SECONDS: Final = 4.0  # … and for what is still to be passed on


class Forwarder:
    """Receives from its construction on, writes while it runs.

    Attributes:
        port: where it listens.
    """

    def __init__(self, host: str, port: int, runs: Path, journals: Path) -> None:
        """Listen, and get everything ready.

        Raises:
            UsageError: the address cannot be listened on, the folder not be written, or an endpoint is wrong.
        """
        anchor = read_anchor()
        self._lock = threading.Lock()
        self._assembly = Assembly(anchor)
        self._receiver = _listen(host, port, self._take)
        self.port = self._receiver.server_port
        self._pass_on: PassOn | None = pass_on_from(os.environ, (host, self.port))
        me, folder = _me(), _folder(runs)
        self._columns = Columns(folder, me, anchor)
        self._tail = Tail(journals, folder, me.instance, me.boot_id, Policy(), self._send)
        self._window_began = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then write all that has come."""
        self._receiver.start()
        while not stop.wait(POLL_SECONDS):
            self._tail.poll()
            if time.monotonic() - self._window_began >= FLUSH_SECONDS:
                self._flush()
        self._receiver.stop(RECEIVE_SECONDS)
        self._tail.poll()
        self._flush(finished=True)
        if self._pass_on:
            self._pass_on.stop(PASS_ON_SECONDS)
        self._flush(finished=True, last=True)
        status = self._status() | {"requests_not_written": self._columns.requests_not_written}
        log.info("ends: %s", json.dumps(status))

    def _take(self, signal: str, plain: bytes, sent: bytes, encoding: str | None) -> None:
        items = self._take_spans(plain) if signal == "traces" else 1
        if self._pass_on:
            self._pass_on.offer(Body(signal, sent, encoding, items))

    def _send(self, signal: str, data: bytes, spans: int) -> None:
        if self._pass_on:
            self._pass_on.offer(Body(signal, data, None, spans))

    def _take_spans(self, plain: bytes) -> int:
        try:
            request = ExportTraceServiceRequest.FromString(plain)
        except DecodeError:
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is no OTLP ExportTraceServiceRequest") from None
        now = time.monotonic()
        with self._lock:
            for process, trace_id, record in read_spans(request):
                if not self._has_journal(process):
                    self._assembly.add(process, trace_id, record, now)
        return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)

    def _flush(self, *, finished: bool = False, last: bool = False) -> None:
        with self._lock:
            rows = list(self._assembly.finished(time.monotonic(), everything=finished))
            made = dict(self._assembly.made)
        now = time.monotonic()
        self._tail.flush(now - self._window_began, time.time_ns())
        self._window_began = now
        self._columns.add(row for row in rows if not self._has_journal(row.worker))
        self._columns.flush(time.time_ns(), made, self._status(), last=last)

    def _has_journal(self, worker: Process) -> bool:
        """Tell whether a worker has a journal: there it tells of the same requests, and more of each.

        Asked of spans when they come, so as not to hold them for nothing, and when their request is complete: the
        first ones can be here before the journal is found.
        """
        return worker.instance in self._tail.instances

    def _status(self) -> dict[str, Any]:
        return asdict(self._assembly.counters) | (self._pass_on.status() if self._pass_on else {})


def _listen(host: str, port: int, take: Take) -> Receiver:
    try:
        return Receiver((host, port), take)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error}; choose another --port") from None


def _folder(runs: Path) -> Path:
    try:
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--runs {runs}: {error.strerror}; name a folder that can be written") from None
    return runs.absolute()


def _me() -> Process:
    packages = ("timesplit", "opentelemetry-proto", "protobuf", "pyarrow")
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
    return Process(
        instance=secrets.token_hex(8),
        service="forwarder",
        pid=os.getpid(),
        host=platform.node(),
        boot_id=boot_id(),
        anchor=None,
        armed=frozenset(),
        versions=json.dumps(versions),
    )
