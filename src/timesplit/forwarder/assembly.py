"""Puts the spans of a request together, in whatever order and batches they come, and makes rows of them.

Pure: no clock, no files. A worker exports spans in the order in which they end, so the calls of a request mostly
come before its server span, but not always in the same batch. A server span is therefore held for a while.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from timesplit import spanfacts
from timesplit.clocks import Anchor
from timesplit.forwarder.spans import Call, Malformed, Process, Record, Served, WorkerEnd

HOLD_SECONDS: Final = 1.5  # more than the second after which a worker exports what it has
# Calls wait for the end of their request. Both bounds have a counter: `expired`, `evicted`.
CALLS_HELD: Final = 200_000  # about 60 MB
CALL_SECONDS: Final = 600.0
SETTLED_SPANS: Final = 200_000  # by which late and repeated spans are known; 50 s of 1,000 requests a second
_DEPTH = (
    64  # spans between a call and its server span; also ends a walk in a circle, which only bad input has
)

Row = dict[str, Any]


@dataclass(slots=True)
class Counters:
    """What became of the spans received.

    Attributes:
        spans: all that are a request served or a call in one.
        malformed: not used because ids or times cannot be.
        repeated: already here: their exporter sent them again after a timeout.
        late: calls of a request whose row was already written; missing from it.
        expired: calls whose request never ended.
        evicted: calls given up because too many were held.
    """

    spans: int = 0
    malformed: int = 0
    repeated: int = 0
    late: int = 0
    expired: int = 0
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A request of which all is known.

    Attributes:
        worker: who served it.
        key: the run's key, if a run has it: the upper 8 bytes of its trace id.
        seq: its number within the worker, or None.
        server: its row for server/, or None for a WebSocket.
        stream: its row for streams/, or None for an ordinary request.
    """

    worker: Process
    key: bytes
    seq: int | None
    server: Row | None
    stream: Row | None


@dataclass(slots=True)
class _Group:
    since: float
    calls: dict[bytes, Call] = field(default_factory=dict)


_GroupId = tuple[str, bytes]  # instance, trace id


class Assembly:
    """Takes records of spans, gives finished requests.

    Not safe for concurrent calls. `now` is any clock in seconds that never goes back.
    """

    def __init__(self, own: Anchor, settled_spans: int = SETTLED_SPANS, calls_held: int = CALLS_HELD) -> None:
        """Start with nothing held.

        Args:
            own: the clock of this process, for workers that do not tell theirs.
            settled_spans: how many finished spans are remembered.
            calls_held: how many calls are held at most.
        """
        self.counters = Counters()
        self.made: dict[str, int] = {}  # by instance: server spans made, of workers that have ended
        self._own = own
        self._settled_spans, self._calls_held = settled_spans, calls_held
        self._groups: OrderedDict[_GroupId, _Group] = OrderedDict()
        self._held = 0
        self._due: deque[tuple[float, Process, Served]] = deque()
        self._waiting: set[bytes] = set()
        self._settled: OrderedDict[bytes, int] = OrderedDict()  # span id → end of its request

    def add(self, worker: Process, trace_id: bytes, record: Record, now: float) -> None:
        """Take a record."""
        match record:
            case Served():
                self._add_served(worker, record, now)
            case Call():
                self._add_call((worker.instance, trace_id), record, now)
            case WorkerEnd():
                self.made[worker.instance] = record.spans_made
            case Malformed():
                self.counters.malformed += 1

    def finished(self, now: float, *, everything: bool = False) -> Iterator[Finished]:
        """Yield the requests that have been held long enough, or all."""
        while self._due and (everything or self._due[0][0] <= now):
            _, worker, served = self._due.popleft()
            calls = self._settle((worker.instance, served.trace_id), served.span_id, served.end)
            yield _finish(worker, served, calls, self._own)
        self._expire(now)

    def _add_served(self, worker: Process, served: Served, now: float) -> None:
        if served.span_id in self._waiting or served.span_id in self._settled:
            self.counters.repeated += 1
            return
        self.counters.spans += 1
        self._waiting.add(served.span_id)
        self._due.append((now + HOLD_SECONDS, worker, served))

    def _add_call(self, group_id: _GroupId, call: Call, now: float) -> None:
        group = self._groups.get(group_id)
        if call.span_id in self._settled or (group and call.span_id in group.calls):
            self.counters.repeated += 1
            return
        self.counters.spans += 1
        request_end = self._settled.get(call.parent_span_id)
        if request_end is not None:
            # Its request is done; work after the response, with all that hangs on it, is not part of it.
            self.counters.late += call.kind is not None and call.start < request_end
            self._settle(group_id, call.span_id, request_end)
            return
        if group is None:
            group = self._groups[group_id] = _Group(now)
        group.calls[call.span_id] = call
        self._held += 1
        while self._held > self._calls_held:
            self.counters.evicted += self._drop_oldest()

    def _settle(self, group_id: _GroupId, span_id: bytes, end: int) -> list[Call]:
        """Take from the group, and return, the calls below a span; remember it and them as done."""
        self._waiting.discard(span_id)
        self._remember(span_id, end)
        group = self._groups.get(group_id)
        if group is None:
            return []
        calls = [call for call in group.calls.values() if _leads_to(span_id, call, group.calls)]
        for call in calls:
            del group.calls[call.span_id]
            self._remember(call.span_id, end)
        self._held -= len(calls)
        if not group.calls:
            del self._groups[group_id]
        return calls

    def _remember(self, span_id: bytes, end: int) -> None:
        self._settled[span_id] = end
        if len(self._settled) > self._settled_spans:
            self._settled.popitem(last=False)

    def _expire(self, now: float) -> None:
        while self._groups and next(iter(self._groups.values())).since + CALL_SECONDS < now:
            self.counters.expired += self._drop_oldest()

    def _drop_oldest(self) -> int:
        _, group = self._groups.popitem(last=False)
        self._held -= len(group.calls)
        return len(group.calls)


def _leads_to(span_id: bytes, call: Call, calls: dict[bytes, Call]) -> bool:
    """Tell whether the span is the nearest server span, or other root, above a call."""
    above: Call | None = call
    for _ in range(_DEPTH):
        parent = above.parent_span_id if above else b""
        if parent == span_id:
            return True
        above = calls.get(parent)
    return False


def _finish(worker: Process, served: Served, calls: list[Call], own: Anchor) -> Finished:
    anchor = worker.anchor or own
    first = served.first if served.first and served.start <= served.first <= served.end else None
    stream = _stream_row(served, first, anchor) if served.stream else None
    server = None
    if served.stream != "websocket":
        # An event stream is answered with its first bytes; the rest is in streams/.
        end = first if served.stream and first else served.end
        server = _server_row(worker, served, end, anchor) | _calls_row(worker, served.start, end, calls)
    return Finished(worker, served.trace_id[:8], served.seq, server, stream)


def _server_row(worker: Process, served: Served, end: int, anchor: Anchor) -> Row:
    return {
        "trace_id": served.trace_id,
        "span_id": served.span_id,
        "parent_span_id": served.parent_span_id,
        "client_span_id": served.client_span_id,
        "method": served.method,
        "service": worker.service,
        "instance": worker.instance,
        "pid": worker.pid,
        "seq": served.seq,
        "http_route": served.route,
        "status": served.status,
        "started": anchor.to_monotonic(served.start),
        "ended": anchor.to_monotonic(end),
        "ended_by": served.ended_by,
    }


def _stream_row(served: Served, first: int | None, anchor: Anchor) -> Row:
    return {
        "trace_id": served.trace_id,
        "span_id": served.span_id,
        "parent_span_id": served.client_span_id or served.parent_span_id,
        "side": "server",
        "name": served.route or "",
        "stage": "",
        "kind": served.stream,
        "opened": anchor.to_monotonic(served.start),
        "first": anchor.to_monotonic(first) if first else None,
        "messages": served.messages,
        "closed": anchor.to_monotonic(served.end),
        "code": served.code if served.stream == "websocket" else served.status,
        "error": "other" if served.ended_by == "exception" else None,
    }


def _calls_row(worker: Process, start: int, end: int, calls: Iterable[Call]) -> Row:
    """Return time and number of the calls within a request.

    None where the worker is not known to record such calls, and none was seen: that is not zero.
    """
    by_kind: dict[str, list[tuple[int, int]]] = {kind: [] for kind in worker.armed}
    for call in calls:
        if call.kind and call.start < end and call.end >= start:
            by_kind.setdefault(call.kind, []).append((max(call.start, start), min(call.end, end)))
    queries, upstream = by_kind.get(spanfacts.QUERIES), by_kind.get(spanfacts.UPSTREAM)
    return {
        "query_ns": _union(queries),
        "query_count": _count(queries),
        "cache_ns": _union(by_kind.get(spanfacts.CACHE)),
        "upstream_ns": _union(upstream),
        "upstream_count": _count(upstream),
    }


def _count(spans: list[tuple[int, int]] | None) -> int | None:
    return None if spans is None else len(spans)


def _union(spans: list[tuple[int, int]] | None) -> int | None:
    """Return the time during which at least one was open."""
    if spans is None:
        return None
    covered, until = 0, 0
    for start, end in sorted(spans):
        covered += max(0, end - max(start, until))
        until = max(until, end)
    return covered
