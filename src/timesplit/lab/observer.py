"""What observing costs: CPU per request of the same service, bare and observed, all at the same time.

A shared machine's speed wanders by a third within seconds, so one server after the other cannot be compared. Here all
variants run at once on one core, next to two bare servers, and the scheduler makes them meet the same noise: the ratio
of CPU per request is steady to a percent or two. It is the ratio of throughputs where a server has a core to itself.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from glob import glob
from urllib.parse import urlsplit

BARE: tuple[str, str] = ("bare", "bare again")
CONNECTIONS = 32
VALID = (0.99, 1.01)  # bare against bare; beyond, the round tells nothing
_TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        variant: how it is observed.
        url: of the route that is called.
        pid: of its only worker.
    """

    variant: str
    url: str
    pid: int


@dataclass(slots=True)
class Cost:
    """What one variant cost.

    Attributes:
        variant: how the service was observed.
        ratios: by round, CPU per request of the bare servers over that of this one.
        cpu_us: by round, its CPU per request in microseconds.
    """

    variant: str
    ratios: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over rounds: 1 costs nothing, 0.5 halves the throughput."""
        return statistics.median(self.ratios)

    @property
    def added_us(self) -> float:
        """CPU that observing adds to a request, in microseconds, median over rounds."""
        return statistics.median(
            cpu - cpu * ratio for cpu, ratio in zip(self.cpu_us, self.ratios, strict=True)
        )


def measure(
    servers: Sequence[Server], rounds: int, seconds: float, tell: Callable[[int, float], None]
) -> list[Cost]:
    """Load all servers at once, round by round, and return what each variant cost.

    Args:
        servers: two bare ones (BARE) and the others, pinned to one core by whoever started them.
        rounds: how many.
        seconds: length of each.
        tell: told of each round's number and of bare over bare.
    """
    costs = {server.variant: Cost(server.variant) for server in servers}
    asyncio.run(_load(servers, min(seconds, 2.0)))  # warm: caches, pools, threads
    for number in range(rounds):
        per_request = _round(servers, seconds)
        bare = statistics.mean(per_request[variant] for variant in BARE)
        for variant, cpu in per_request.items():
            reference = per_request[BARE[0]] if variant == BARE[1] else bare
            costs[variant].ratios.append(reference / cpu)
            costs[variant].cpu_us.append(cpu / 1000)
        tell(number + 1, per_request[BARE[0]] / per_request[BARE[1]])
    return [costs[server.variant] for server in servers]


def worker_cpu_ns(pid: int) -> int:
    """Return the CPU time of a process's threads in nanoseconds, from the scheduler's own account (Linux)."""
    total = 0
    for path in glob(f"/proc/{pid}/task/*/schedstat"):
        with suppress(OSError), open(path) as file:
            total += int(file.read().split()[0])
    return total


def _round(servers: Sequence[Server], seconds: float) -> dict[str, float]:
    before = {server.variant: worker_cpu_ns(server.pid) for server in servers}
    answered = asyncio.run(_load(servers, seconds))
    return {
        server.variant: (worker_cpu_ns(server.pid) - before[server.variant]) / answered[server.variant]
        for server in servers
    }


async def _load(servers: Sequence[Server], seconds: float) -> dict[str, int]:
    until = time.monotonic() + seconds
    clients = {server.variant: [_Client(server.url, until) for _ in range(CONNECTIONS)] for server in servers}
    await asyncio.gather(*(client.run() for each in clients.values() for client in each))
    return {variant: _total(client.answered for client in each) for variant, each in clients.items()}


def _total(counts: Iterable[int]) -> int:
    return max(1, sum(counts))


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, and counts answers.

    Not Locust: it needs a tenth of the CPU, of which there is one core for all variants.
    """

    def __init__(self, url: str, until: float) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        lines = (
            f"GET {parts.path} HTTP/1.1",
            f"Host: {parts.netloc}",
            f"traceparent: {_TRACEPARENT}",
            "",
            "",
        )
        self._request = "\r\n".join(lines).encode()
        self._until = until
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.answered = 0

    async def run(self) -> None:
        """Ask until the time is over."""
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: self, self._host, self._port
        )
        self._transport = transport
        transport.write(self._request)
        await self._over
        transport.close()

    def data_received(self, data: bytes) -> None:
        """Count an answer, and ask again."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < _content_length(head):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self._end(RuntimeError(f"the service answered {head.splitlines()[0].decode()}"))
            return
        self._buffer = b""
        self.answered += 1
        if time.monotonic() < self._until and self._transport is not None:
            self._transport.write(self._request)
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        """A service that closes connections is not measured."""
        self._end(error or ConnectionError("the service closed a connection"))

    def _end(self, error: Exception | None) -> None:
        if self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
