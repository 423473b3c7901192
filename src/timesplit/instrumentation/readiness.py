"""When a reply reached the kernel, which may be long before a busy loop read it.

A hook that knows on which connection a strand waits leaves it as the strand's source. When the wait is over, and it
was long, the kernel says how old the connection's last data are: that is when the strand was ready. The kernel counts
in jiffies; where it cannot tell (a Unix socket, a connection that is just being opened, a system without TCP_INFO),
what the loop was busy just before is uncertain, and is noted as that.
"""

import socket
import sys
import time
from collections.abc import Callable
from struct import Struct
from typing import Any

from timesplit.instrumentation.ledger import Strand
from timesplit.parts import CODES

# Other systems have an option of that name too, with other contents, or none.
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_LAST_RECEIVED = Struct("@52xI")  # tcpi_last_data_recv of struct tcp_info, in ms
_COARSE_CLOCK = 6  # CLOCK_MONOTONIC_COARSE of Linux: it advances once a jiffy

_INSTANT = 100_000  # ns

clock = time.monotonic_ns

# Parts in which a strand waits for bytes from somewhere else.
REMOTE = frozenset(CODES[name] for name in ("db_connect", "query", "cache", "upstream_wait", "upstream"))

Find = Callable[[Any], Any]
# Class of a source → what finds its socket: an object with `fileno`, or a file descriptor.
SOCKETS: dict[type, Find] = {}


def _jiffy() -> int:
    try:
        return int(time.clock_getres(_COARSE_CLOCK) * 1e9)
    except (OSError, AttributeError):
        return 4_000_000


JIFFY = _jiffy()  # ns


def came(strand: Strand, now: int, busy_from: int, busy_to: int) -> int:
    """Return when what a strand waited for on its source came.

    Args:
        strand: woken now; without a source, nobody can tell when it was ready.
        now: when the loop had read it.
        busy_from: since when the loop was busy, the last time that it was seen to be.
        busy_to: up to when.
    """
    waited = now - strand.suspended
    if waited < 2 * JIFFY or not strand.suspended or strand.ready:
        return now
    busy = max(now - max(busy_from, strand.suspended), 0) if now - busy_to < JIFFY else 0
    told = _last_data(strand.source)
    if told is None:
        _uncertain(strand, busy)
        return now
    arrived, age = told
    earliest = strand.suspended
    if arrived < earliest - JIFFY:
        return now  # an earlier reply's: a timer woke the strand
    if arrived < earliest + JIFFY and strand.due is not None and strand.due[0] <= now:
        return now  # as likely as not
    # An age of one jiffy means anything up to two: it counts only where the loop was busy for that long.
    if age < 2 * JIFFY:
        arrived = max(arrived, now - busy)
    return min(max(arrived, earliest), now)


def _uncertain(strand: Strand, busy: int) -> None:
    request: Any = strand.request
    if busy and request is not None:
        request.uncertain += busy


def _last_data(source: object) -> tuple[int, int] | None:
    """Return when the last data on a connection came, and their age; None where the kernel cannot tell."""
    find = next((SOCKETS[owner] for owner in source.__class__.__mro__ if owner in SOCKETS), None)
    if find is None or _TCP_INFO is None:
        return None
    try:
        found = find(source)
        descriptor = found if isinstance(found, int) else found.fileno()
        # Family and type are given, or the constructor would ask the kernel for them.
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor)
        try:
            return _asked(connection, _TCP_INFO)
        finally:
            connection.detach()
    except Exception:  # whatever a library's own objects raise: unknown
        return None


def _asked(connection: socket.socket, option: int) -> tuple[int, int]:
    for _ in range(3):
        before = clock()
        info = connection.getsockopt(socket.IPPROTO_TCP, option, 104)
        now = clock()
        if now - before < _INSTANT:  # else something came between, and the age is of another instant
            break
    age = int(_LAST_RECEIVED.unpack_from(info)[0]) * 1_000_000
    return now - age, age
