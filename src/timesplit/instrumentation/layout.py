"""The journal's layout: what a worker writes and the forwarder reads.

A journal is a file of a header page and slots of SLOT_BYTES each. A slot is FREE, OPEN (a request that is under way:
the slots are the in-flight table too) or DONE; only the worker takes a FREE slot, only the forwarder frees a DONE one,
so no lock is needed. The state is written last. All numbers are native 64-bit; 0 stands for "nothing", -1 for NULL.
"""

from struct import Struct, calcsize
from typing import Final

from timesplit.parts import SERVER_PARTS

MAGIC: Final = b"TSJRNL01"
HEADER_BYTES: Final = 4096
SLOT_BYTES: Final = 1024
SLOTS: Final = 4096  # 4 MiB a worker; at 1,000 requests a second the forwarder may sleep 4 s
UNKNOWN: Final = -1

FREE, OPEN, DONE = 0, 1, 2

# Kinds of record, in a slot's second word.
IS_REQUEST, IS_MORE, IS_TEXT, IS_STEP, IS_AFTER, IS_STREAM, IS_CROWD = range(1, 8)

# What an open request is doing, besides a part: it has been answered, and does what comes after.
ANSWERED: Final = -1

Fields = tuple[tuple[str, str], ...]


class Layout:
    """Where the fields of a record lie, from `base` on, without padding.

    Attributes:
        fields: (name, struct format) of each field.
        base: offset of the first.
        size: bytes of all.
        pack_into: packs all of them into a buffer.
    """

    def __init__(self, fields: Fields, base: int = 0) -> None:
        self.fields = fields
        self.base = base
        packer = Struct("=" + "".join(form for _, form in fields))
        self.size = packer.size
        self.pack_into = packer.pack_into
        self.unpack_from = packer.unpack_from

    def offset(self, name: str) -> int:
        """Return where a field lies, from the record's start."""
        at = self.base
        for field, form in self.fields:
            if field == name:
                return at
            at += calcsize("=" + form)
        raise KeyError(name)


HEADER: Final = Layout(
    (
        ("magic", "8s"),
        ("slots", "q"),
        ("pid", "q"),
        ("monotonic", "q"),  # clock anchor: CLOCK_MONOTONIC and UTC, read together
        ("utc", "q"),
        ("instance", "16s"),
        ("begun", "q"),  # requests begun, those without a slot among them
        ("dropped", "q"),  # records for which no slot was free
        ("failed", "q"),  # errors of ours, caught before they could reach a request
        ("refused", "q"),  # requests that the server refused before the application ran
        ("in_flight", "q"),  # requests under way
        ("in_flight_ns", "q"),  # integral of in-flight × time is this + in_flight × (now - in_flight_at)
        ("in_flight_at", "q"),
        ("busy_ns", "q"),  # time in steps of requests on the event loop
        ("about", "3072s"),  # JSON: host, boot id, service, versions, configuration, hooks armed
    )
)

# A request's slot when its first step begins …
OPENING: Final = Layout(
    (
        ("state", "q"),
        ("kind", "q"),
        ("number", "q"),  # of the request within the worker; its span id is made from it
        ("started", "q"),
        ("traceparent", "56s"),
        ("client_span", "16s"),  # hex, from tracestate
        ("doing", "q"),  # code of the part it is in, or ANSWERED …
        ("since", "q"),  # … and since when: what a killed request was doing
    )
)

# … and when it is over.
CLOSING: Final = Layout(
    (
        ("ended", "q"),
        ("finished", "q"),  # end of the work after the response
        ("arrived", "q"),
        ("route", "q"),  # text number of the template; 0 where none matched
        ("method", "q"),  # text number
        ("status", "q"),
        ("ended_by", "q"),  # index in ENDED_BY
        ("route_cpu_ns", "q"),
        ("uncertain_ns", "q"),
        ("query_count", "q"),
        ("upstream_count", "q"),
        ("other", "q"),  # text number of the longest other wait's label
        # A server span of the application's own tracing: 0 none, 1 not sampled, 2 sampled. Where there is one, no other
        # server span is made of this request. Its ids: upper and lower half of the trace's, and the span's.
        ("foreign", "q"),
        ("foreign_trace_upper", "q"),
        ("foreign_trace_lower", "q"),
        ("foreign_span", "q"),
        ("segments", "q"),  # how many there are; the first SEGMENTS_INLINE follow here
        *((part.column, "q") for part in SERVER_PARTS),
    ),
    OPENING.size,
)

SEGMENT: Final = Layout((("part", "q"), ("label", "q"), ("start", "q"), ("end", "q")))
SEGMENTS_AT: Final = OPENING.size + CLOSING.size
SEGMENTS_INLINE: Final = (SLOT_BYTES - SEGMENTS_AT) // SEGMENT.size

# More segments of a request, in slots of their own.
MORE: Final = Layout((("state", "q"), ("kind", "q"), ("number", "q"), ("segments", "q")))
MORE_INLINE: Final = (SLOT_BYTES - MORE.size) // SEGMENT.size

# A text and its number: names are written once. At most 4,000 a worker, the rest is text 1, "other".
TEXT: Final = Layout((("state", "q"), ("kind", "q"), ("number", "q"), ("length", "q")))
TEXT_BYTES: Final = SLOT_BYTES - TEXT.size

# A step of the loop of 1 ms or more, a GC pause, or a thread that kept the loop from running. OPEN while the step still
# runs, from the moment when its place in the code was seen: of a dead worker, what it was in when it died.
STEP: Final = Layout(
    (
        ("state", "q"),
        ("kind", "q"),
        ("number", "q"),  # of the request whose step it was, else 0
        ("started", "q"),
        ("ended", "q"),
        ("cpu_ns", "q"),  # CPU time of the thread in it; -1 unknown
        ("owner", "q"),  # text number: "GET /x", a task's name, "gc 2"
        ("file", "q"),  # text number; 0 unknown
        ("line", "q"),
        ("function", "q"),  # text number
    )
)

# A piece of work after a response: a background task, the teardown of a dependency.
AFTER: Final = Layout(
    (
        ("state", "q"),
        ("kind", "q"),
        ("number", "q"),  # of the request
        ("started", "q"),
        ("ended", "q"),
        ("busy_ns", "q"),  # time in steps on the loop
        ("route", "q"),  # text number
    )
)

# An event stream after its first bytes, or a WebSocket.
STREAM: Final = Layout(
    (
        ("state", "q"),
        ("kind", "q"),
        ("number", "q"),  # of the request that opened it; a WebSocket, which has no such record: below zero
        ("traceparent", "56s"),
        ("client_span", "16s"),
        ("what", "q"),  # index in STREAM_KINDS
        ("opened", "q"),
        ("first", "q"),  # first message; 0 none
        ("messages", "q"),
        ("closed", "q"),
        ("code", "q"),  # WebSocket close code, or HTTP status; 0 unknown
        ("route", "q"),  # text number
    )
)
STREAM_KINDS: Final = ("websocket", "sse")

# Steps of the loop that were too short for a record each: how much of a stretch of time they took, by owner.
CROWD: Final = Layout((("state", "q"), ("kind", "q"), ("started", "q"), ("ended", "q"), ("rows", "q")))
CROWD_ROW: Final = Layout((("owner", "q"), ("busy_ns", "q")))  # text number, as in STEP
CROWD_ROWS: Final = (SLOT_BYTES - CROWD.size) // CROWD_ROW.size

ENDED_BY: Final = ("response", "disconnect", "exception", "killed")

SPREAD: Final = (
    0x9E3779B97F4A7C15  # odd, so that no two numbers of a worker meet (Knuth's multiplicative hash)
)


def span_id(instance: str, number: int) -> int:
    """Return the span id, 64 bits, of a worker's request: both ends make it, nobody has to write it."""
    return (int(instance, 16) + number * SPREAD) % (1 << 64) or 1
