"""Client spans, as OTLP over HTTP: made from the same records as `client/`, long after the request.

All attempts of the same name, stage and outcome have the same span but for ids and times, whose encoding has
a fixed length. So the common rest is encoded once, and ids and times are filled in as columns: 0.2 µs a span
instead of 9 µs by messages, which in a thread that shares the interpreter is time taken from the load.
"""

import http.client
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import gevent
import numpy as np
from gevent.queue import Full, Queue
from gevent.threadpool import ThreadPool
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from timesplit.clocks import Anchor
from timesplit.loadgen.records import UNKNOWN, Records, Texts

_log = logging.getLogger(__name__)
_WAITING: Final = 16  # batches; beyond that a collector is too slow and spans are dropped, and counted
_AT_ONCE: Final = 8192  # spans in a request: below 4 MiB
_SLICE: Final = 512  # spans made at a stroke: no step may keep the interpreter from the load for long
_TIMEOUT_S: Final = 3.0
_LAST_S: Final = 3.0  # how long the end of a run waits for a collector
_SERVICE: Final = "timesplit-generator"
# Tags of opentelemetry.proto.trace.v1.Span: trace_id, span_id, start_time_unix_nano, end_time_unix_nano.
_TRACE_ID, _SPAN_ID, _START, _END = b"\x0a\x10", b"\x12\x08", b"\x39", b"\x41"


class SpanEncoder:
    """Encodes records of one run as OTLP export requests."""

    def __init__(self, key: bytes, instance: str, anchor: Anchor, host: str | None) -> None:
        """Prepare what all spans have in common.

        Args:
            key: the run's key.
            instance: random id of this process.
            anchor: clock anchor of this process.
            host: URL of the service.
        """
        address = urlsplit(host or "")
        about: dict[str, str | int] = {"service.name": _SERVICE, "service.instance.id": instance}
        about |= {"host.name": socket.gethostname(), "process.pid": os.getpid()}
        self._resource = Resource(attributes=_attributes(about)).SerializeToString()
        self._scope = InstrumentationScope(name="timesplit.loadgen").SerializeToString()
        port = address.port or {"http": 80, "https": 443}.get(address.scheme)
        self._common = {"timesplit.run": key.hex(), "server.address": address.hostname, "server.port": port}
        self._key, self._to_utc = key, anchor.utc - anchor.monotonic

    def encode(self, records: Records, names: Texts, words: Texts) -> bytes:
        """Return an ExportTraceServiceRequest with a span of each record."""
        spans = b"".join(self._groups(records, names.texts, words.texts))
        scope_spans = _field(1, self._scope) + spans
        return _field(1, _field(1, self._resource) + _field(2, scope_spans))

    def _groups(self, records: Records, names: list[str], words: list[str]) -> Iterator[bytes]:
        alike = _number_alike(records)
        for number in np.unique(alike):
            group = records[alike == number]
            rest = self._rest(group[0], names, words)
            for first in range(0, len(group), _SLICE):
                yield self._encode_group(group[first : first + _SLICE], rest)

    def _encode_group(self, group: Records, rest: bytes) -> bytes:
        times = 2 * (len(_START) + 8)
        ids = len(_TRACE_ID) + 16 + len(_SPAN_ID) + 8
        tag = _tag(2, ids + times + len(rest))
        layout = [("tag", len(tag)), ("trace_tag", 2), ("key", 8), ("trace", 8), ("span_tag", 2), ("span", 8)]
        layout += [("start_tag", 1), ("start", 8), ("end_tag", 1), ("end", 8), ("rest", len(rest))]
        spans = np.empty(len(group), np.dtype([(name, f"V{size}") for name, size in layout]))
        fixed = {"tag": tag, "trace_tag": _TRACE_ID, "key": self._key, "span_tag": _SPAN_ID}
        for name, value in (fixed | {"start_tag": _START, "end_tag": _END, "rest": rest}).items():
            spans[name] = np.void(value)
        spans["trace"], spans["span"] = group["trace"], group["span"]
        start = np.where(group["sent"] == UNKNOWN, group["intended"], group["sent"])
        end = np.maximum(group["ended"], start)
        spans["start"], spans["end"] = (
            (time + self._to_utc).astype("<u8").view("V8") for time in (start, end)
        )
        return bytes(spans.tobytes())

    def _rest(self, record: Any, names: list[str], words: list[str]) -> bytes:
        name, method, error = names[record["name"]], words[record["method"]], words[record["error"]]
        status = int(record["status"])
        facts: dict[str, Any] = {
            "http.request.method": method,
            "url.template": name.removeprefix(method + " "),
            "http.response.status_code": None if status == UNKNOWN else status,
            "error.type": error or None,
            "timesplit.stage": words[record["stage"]],
        }
        span = Span(name=name, kind=Span.SPAN_KIND_CLIENT, attributes=_attributes(self._common | facts))
        if error:
            span.status.code = Status.STATUS_CODE_ERROR
        return bytes(span.SerializeToString())


class SpanSender:
    """Sends client spans to a collector that may be slow or dead: the load does not notice.

    Attributes:
        sent: spans that the collector has taken.
        dropped: spans that it has not.
    """

    def __init__(self, endpoint: str, headers: Mapping[str, str], encoder: SpanEncoder) -> None:
        """Start to send.

        Args:
            endpoint: URL to post to.
            headers: further HTTP headers.
            encoder: makes the requests.
        """
        self.sent = self.dropped = 0
        self._url, self._encoder = urlsplit(endpoint), encoder
        self._headers = {"content-type": "application/x-protobuf", **headers}
        self._waiting: Queue = Queue(_WAITING)
        self._thread = ThreadPool(1)
        self._greenlet = gevent.spawn(self._send_all)

    @classmethod
    def from_environment(
        cls, key: bytes, instance: str, anchor: Anchor, host: str | None
    ) -> "SpanSender | None":
        """Return a sender as OpenTelemetry's environment variables say; None where they name no endpoint."""
        base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (
            base and base.rstrip("/") + "/v1/traces"
        )
        if not endpoint or os.environ.get("TIMESPLIT_TRACES") == "off":
            return None
        given = os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")
        headers = (pair.partition("=") for pair in given.split(",") if pair)
        encoder = SpanEncoder(key, instance, anchor, host)
        return cls(
            endpoint, {unquote(name).strip(): unquote(value).strip() for name, _, value in headers}, encoder
        )

    def offer(self, records: Records, names: Texts, words: Texts) -> None:
        """Send spans of these records when their turn comes, or drop and count them."""
        for first in range(0, len(records), _AT_ONCE):
            some = records[first : first + _AT_ONCE]
            try:
                self._waiting.put_nowait((some, names, words))
            except Full:
                self.dropped += len(some)

    def close(self) -> None:
        """Give what waits a last chance, and stop."""
        with gevent.Timeout(_LAST_S, False):
            self._waiting.put(None)
            self._greenlet.join()
        self._greenlet.kill()
        while not self._waiting.empty():
            if batch := self._waiting.get_nowait():
                self.dropped += len(batch[0])
        self._thread.kill()
        if self.dropped:
            _log.warning("timesplit: %d client spans did not reach %s", self.dropped, self._url.netloc)

    def _send_all(self) -> None:
        for records, names, words in iter(self._waiting.get, None):
            taken = False
            try:
                taken = self._thread.apply(self._send, (records, names, words))
            finally:
                self.sent += len(records) if taken else 0
                self.dropped += 0 if taken else len(records)

    def _send(self, records: Records, names: Texts, words: Texts) -> bool:
        """Encode and post, in the native thread. Return whether the collector has taken them."""
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=_TIMEOUT_S)
        try:
            connection.request(
                "POST", self._url.path, self._encoder.encode(records, names, words), self._headers
            )
            return connection.getresponse().status < 300
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _number_alike(records: Records) -> Any:
    """Return one number for each record, the same for those whose spans differ only in ids and times."""
    number = records["status"].astype(np.int64) + 1
    for field in ("error", "method", "stage", "name"):
        number = (number << 11) | records[field]
    return number


def _attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    return [
        KeyValue(
            key=key,
            value=AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value),
        )
        for key, value in values.items()
        if value is not None
    ]


def _field(number: int, payload: bytes) -> bytes:
    return _tag(number, len(payload)) + payload


def _tag(number: int, size: int) -> bytes:
    """Return the start of a length-delimited protobuf field: tag, and length as a varint."""
    encoded = bytearray([number << 3 | 2])
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)
