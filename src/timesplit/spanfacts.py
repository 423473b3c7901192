"""What a worker's spans tell the forwarder in mode `otel`, beside the standard attributes.

Names of attributes of OpenTelemetry's resource and spans. Times are UTC nanoseconds since 1970, as in spans.
"""

from typing import Final

# Of the resource: the worker process. `service.instance.id` and `process.pid` are there as well.
ANCHOR_MONOTONIC: Final = "timesplit.anchor.monotonic"  # clock anchor: CLOCK_MONOTONIC …
ANCHOR_UTC: Final = "timesplit.anchor.utc"  # … and UTC, read together
BOOT_ID: Final = "timesplit.boot_id"
ARMED: Final = "timesplit.armed"  # kinds of calls that are recorded; of the others nothing is known
VERSIONS: Final = "timesplit.versions"  # JSON object

QUERIES: Final = "query"
CACHE: Final = "cache"
UPSTREAM: Final = "upstream"

# Of a server span.
SEQ: Final = "timesplit.seq"  # 0, 1, 2 … in the order in which the worker's server spans ended
ENDED_BY: Final = "timesplit.ended_by"  # as in schema.SERVER
STREAM: Final = "timesplit.stream"  # `websocket` or `sse`; absent on an ordinary request
FIRST: Final = "timesplit.first"  # first message of the stream, or first bytes of its body
MESSAGES: Final = "timesplit.messages"
CODE: Final = "timesplit.code"  # close code of a WebSocket

# The last span of a worker says how many server spans it made, so that a loss at the tail is known.
WORKER_END: Final = "timesplit.worker.end"
SPANS_MADE: Final = "timesplit.spans_made"
