"""Ids of runs, traces and attempts, and the headers that carry them (W3C Trace Context).

The upper 64 bits of a trace id are the run's key, the lower 64 are random. `tracestate: timesplit=<client
span id>` marks our requests and survives proxies that put spans of their own in between.
"""

import os
import re
from typing import Final

KEY_BYTES: Final = 8
TRACESTATE_KEY: Final = "timesplit"
_FULL_SHARE: Final = 1 << 64
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_MARK = re.compile(rf"(?:\A|,)[ \t]*{TRACESTATE_KEY}=([0-9a-f]{{16}})[ \t]*(?:,|\Z)")


def new_run_key() -> bytes:
    """Return 8 random bytes that are not all zero."""
    key = os.urandom(KEY_BYTES)
    return key if any(key) else new_run_key()


def is_kept(trace_id: bytes, share: float) -> bool:
    """Tell whether a trace belongs to the kept share.

    Both sides of the wire decide alike because the lower 64 bits are uniformly random.

    Args:
        trace_id: 16 bytes.
        share: between 0 (none) and 1 (all).
    """
    return int.from_bytes(trace_id[KEY_BYTES:], "big") < share * _FULL_SHARE


def traceparent(trace_id: bytes, span_id: bytes, *, sampled: bool) -> str:
    """Return the value of the `traceparent` header."""
    return f"00-{trace_id.hex()}-{span_id.hex()}-{'01' if sampled else '00'}"


def tracestate(span_id: bytes) -> str:
    """Return the value of the `tracestate` header that marks an attempt of ours."""
    return f"{TRACESTATE_KEY}={span_id.hex()}"


def parse_traceparent(value: str) -> tuple[bytes, bytes, bool] | None:
    """Return trace id, parent span id and the sampled flag, or None if the value is not valid."""
    match = _TRACEPARENT.match(value)
    if match is None:
        return None
    trace_id, span_id = bytes.fromhex(match[1]), bytes.fromhex(match[2])
    if not any(trace_id) or not any(span_id):
        return None
    return trace_id, span_id, bool(int(match[3], 16) & 1)


def client_span_id(tracestate_value: str) -> bytes | None:
    """Return the client span id that marks a request of ours, or None."""
    match = _MARK.search(tracestate_value)
    return bytes.fromhex(match[1]) if match else None
