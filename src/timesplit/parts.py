"""The vocabulary: the parts into which a request's time is split.

One table. Columns, metrics, reports, colours and documentation are made from it; a new data source
adds a row here and a module in `instrumentation/`.
"""

from dataclasses import dataclass
from typing import Literal

Side = Literal["client", "server", "join"]


@dataclass(frozen=True, slots=True)
class Part:
    """A kind of time that a request can be spending.

    Attributes:
        name: the word for it everywhere; its column is `name + "_ns"`.
        side: who measures it.
        meaning: charged while this holds.
        colour: the same in every plot; distinguishable in light and dark, and by the colour-blind.
        metric: standard OpenTelemetry metric of the same meaning, where one exists.
    """

    name: str
    side: Side
    meaning: str
    colour: str
    metric: str | None = None

    @property
    def column(self) -> str:
        """Name of the column that holds this part's nanoseconds."""
        return f"{self.name}_ns"


PARTS: tuple[Part, ...] = (
    Part("late", "client", "the generator had not yet sent what was due", "#9e9e9e"),
    Part("connect", "client", "the client opens a new connection, up to the handshake", "#bcbd8b"),
    Part("accept", "server", "the connection sits in the kernel's accept queue", "#8c564b"),
    Part("read", "server", "request bytes sit in the socket buffer, unread by the worker", "#b07aa1"),
    Part("receive", "server", "the service waits for the client to send the rest of the request", "#d4a6c8"),
    Part("loop", "server", "the request could run, but its event loop is busy", "#e15759"),
    Part("route", "server", "the request's own steps run on the event loop", "#4e79a7"),
    Part("offload_wait", "server", "the request waits for a worker-thread token and a thread", "#f28e2b"),
    Part("offload_run", "server", "the request's call runs in a worker thread", "#ffbe7d"),
    Part(
        "pool_wait",
        "server",
        "the request waits for a database connection from the pool",
        "#d37295",
        "db.client.connection.wait_time",
    ),
    Part(
        "db_connect",
        "server",
        "a database connection is opened or pinged",
        "#fabfd2",
        "db.client.connection.create_time",
    ),
    Part("query", "server", "the database executes", "#59a14f", "db.client.operation.duration"),
    Part("cache", "server", "a Redis or Valkey command runs", "#8cd17d", "db.client.operation.duration"),
    Part("upstream_wait", "server", "the request waits for an outbound HTTP connection", "#499894"),
    Part("upstream", "server", "an outbound HTTP call runs", "#86bcb6", "http.client.request.duration"),
    Part("other_wait", "server", "any other await, with the name of what is awaited", "#b6992d"),
    Part("send", "server", "response bytes wait because the client is slow to take them", "#79706e"),
    Part("network", "join", "bytes travel between client and server, both directions", "#c7b299"),
    Part("unattributed", "join", "an edge could not be stamped: the gap that it leaves", "#d7d7d7"),
)

SERVER_PARTS: tuple[Part, ...] = tuple(part for part in PARTS if part.side == "server")

# Index of each server part: what the worker writes instead of names.
CODES: dict[str, int] = {part.name: code for code, part in enumerate(SERVER_PARTS)}
