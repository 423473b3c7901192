"""Passes on what comes in to the collector that the environment names, without ever making a worker wait for it."""

import logging
import random
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx
from opentelemetry.util.re import parse_env_headers

from timesplit.errors import UsageError

log = logging.getLogger(__name__)

QUEUE_BYTES: Final = 64 << 20  # beyond it, what comes is dropped and counted
RETRY_SECONDS: Final = 300.0  # for one body; then it is dropped and counted
BACKOFF_SECONDS: Final = (0.5, 30.0)  # first and longest pause between attempts
TIMEOUT_SECONDS: Final = 10.0
_TRY_AGAIN = frozenset({429, 502, 503, 504})
SIGNALS = ("traces", "metrics", "logs")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@dataclass(frozen=True, slots=True)
class Body:
    """An export request as it came.

    Attributes:
        signal: `traces`, `metrics` or `logs`.
        data: as received, maybe compressed.
        encoding: its Content-Encoding, or None.
        items: spans in it; 1 for metrics and logs, which are not read.
    """

    signal: str
    data: bytes
    encoding: str | None
    items: int


class PassOn:
    """A bounded queue, and a thread that empties it into a collector.

    Attributes:
        passed: spans that the collector took.
        dropped: spans that it will never get.
    """

    def __init__(
        self, endpoints: Mapping[str, str], client: httpx.Client, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        """Start the thread.

        Args:
            endpoints: by signal, where to post it.
            client: what to post with; closed at the end.
            queue_bytes: how much may wait.
        """
        self.passed = 0
        self.dropped = 0
        self._endpoints, self._client, self._queue_bytes = endpoints, client, queue_bytes
        self._queue: deque[Body] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._stop_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="pass-on", daemon=True)
        self._thread.start()

    def offer(self, body: Body) -> None:
        """Take a body for the collector, or drop it. Never waits."""
        if body.signal not in self._endpoints:
            return
        with self._changed:
            if self._bytes + len(body.data) > self._queue_bytes:
                self._settle(body, "the queue is full")
                return
            self._queue.append(body)
            self._bytes += len(body.data)
            self._changed.notify()

    def stop(self, seconds: float) -> None:
        """Pass on what waits, for some seconds at most; the rest is dropped."""
        with self._changed:
            self._stop_at = time.monotonic() + seconds
            self._changed.notify()
        self._thread.join(seconds + 1)
        with self._changed:
            for body in self._queue:
                self._settle(body, "the forwarder stops")
            self._queue.clear()

    def status(self) -> dict[str, object]:
        """Return settings and counts, for hosts/."""
        shown = {signal: _without_secrets(url) for signal, url in self._endpoints.items()}
        return {"pass_on": shown, "passed_on": self.passed, "pass_on_dropped": self.dropped}

    def _run(self) -> None:
        with self._client:
            while body := self._next():
                delivered = self._deliver(body)
                with self._changed:
                    if body not in self._queue:
                        return  # it took longer than `stop` waits, and is counted as dropped
                    self._queue.popleft()
                    self._bytes -= len(body.data)
                    self._settle(body, delivered)

    def _next(self) -> Body | None:
        with self._changed:
            while not self._queue:
                if self._stop_at < float("inf"):
                    return None
                self._changed.wait()
            return self._queue[0]

    def _deliver(self, body: Body) -> str | None:
        """Post a body until the collector takes it, and return why it never will, else None."""
        pause, longest = BACKOFF_SECONDS
        until = time.monotonic() + RETRY_SECONDS
        while True:
            answer = self._post(body)
            if isinstance(answer, httpx.Response) and answer.is_success:
                return None
            if isinstance(answer, httpx.Response) and answer.status_code not in _TRY_AGAIN:
                return f"the collector answers {answer.status_code}"
            wait = max(pause * random.uniform(0.8, 1.2), _retry_after(answer))
            if not self._pause(min(wait, longest), until):
                return str(answer) or type(answer).__name__
            pause = min(2 * pause, longest)

    def _post(self, body: Body) -> httpx.Response | httpx.HTTPError:
        headers = {"Content-Type": "application/x-protobuf"}
        if body.encoding:
            headers["Content-Encoding"] = body.encoding
        try:
            return self._client.post(self._endpoints[body.signal], content=body.data, headers=headers)
        except httpx.HTTPError as error:
            return error

    def _pause(self, seconds: float, until: float) -> bool:
        """Wait before another attempt, and tell whether there is time for one."""
        with self._changed:
            resume = time.monotonic() + seconds
            while time.monotonic() < resume < min(until, self._stop_at):
                self._changed.wait(resume - time.monotonic())
            return resume < min(until, self._stop_at)

    def _settle(self, body: Body, why_not: str | None) -> None:
        if why_not is None:
            self.passed += body.items
            return
        if not self.dropped:
            log.warning("not all spans are passed on: %s; what is dropped is counted", why_not)
        self.dropped += body.items


def pass_on_from(environment: Mapping[str, str], own: tuple[str, int]) -> PassOn | None:
    """Start to pass on to where the environment says, by OpenTelemetry's variables; None if it says nothing.

    Args:
        environment: the process's.
        own: address and port of this forwarder, which would otherwise feed itself.

    Raises:
        UsageError: an endpoint is no HTTP address, or is the forwarder itself.
    """
    endpoints = dict(_endpoints(environment))
    for variable, url in endpoints.values():
        _check(variable, url, own)
    if not endpoints:
        return None
    hosts = {urlsplit(url).hostname for _, url in endpoints.values()}
    client = httpx.Client(
        headers=parse_env_headers(environment.get("OTEL_EXPORTER_OTLP_HEADERS", ""), liberal=True),
        timeout=TIMEOUT_SECONDS,
        trust_env=not hosts <= _LOOPBACK,  # a proxy cannot reach this machine's loopback
        verify=_tls(environment),
    )
    return PassOn({signal: url for signal, (_, url) in endpoints.items()}, client)


def _endpoints(environment: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each signal with the variable that names its endpoint, and the endpoint."""
    for signal in SIGNALS:
        own, general = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
        if environment.get(own):
            yield signal, (own, environment[own])
        elif environment.get(general):
            yield signal, (general, f"{environment[general].rstrip('/')}/v1/{signal}")


def _check(variable: str, url: str, own: tuple[str, int]) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise UsageError(f"{variable}: {_without_secrets(url)} is no http:// or https:// address")
    if port == own[1] and (host == own[0] or {host, own[0]} <= _LOOPBACK):
        raise UsageError(
            f"{variable}: {_without_secrets(url)} is this forwarder itself; name the collector, or nothing"
        )


def _tls(environment: Mapping[str, str]) -> ssl.SSLContext | bool:
    names = (f"OTEL_EXPORTER_OTLP_{name}" for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"))
    authority, certificate, key = (environment.get(name) or None for name in names)
    if not authority and not certificate:
        return True
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_CERTIFICATE, …_CLIENT_CERTIFICATE, …_CLIENT_KEY: {error}"
        ) from None
    return context


def _retry_after(answer: httpx.Response | httpx.HTTPError) -> float:
    seconds = answer.headers.get("Retry-After", "") if isinstance(answer, httpx.Response) else ""
    return float(seconds) if seconds.isdecimal() else 0.0


def _without_secrets(url: str) -> str:
    return re.sub(r"(?<=://)[^/@]*@", "", url).partition("?")[0]
