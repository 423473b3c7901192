"""Locust's FastHttpUser, with records: the class that scenarios derive from."""

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from time import monotonic_ns
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
import locust
from locust.contrib.fasthttp import FastHttpSession, LocustBadStatusCode
from locust.env import Environment
from locust.exception import StopUser

from timesplit.loadgen.attempt import Burst, Call, current
from timesplit.loadgen.generator import Generator
from timesplit.loadgen.recorder import Recorder
from timesplit.loadgen.streams import EventParser, WebSocket
from timesplit.loadgen.transport import RecordedResponse, RecordingClientPool


class FastHttpUser(locust.FastHttpUser):
    """Locust's FastHttpUser whose every attempt is a row of `client/` and carries trace context.

    Use it in a locustfile in place of Locust's own; all else there stays as it is.

    Attributes:
        model: `closed` (users who think) or `bursts`; for run.json.
        stages: stages of the scenario in their order. A run begins in the first.
        by_name: left out where nobody chooses among the classes of several locustfiles: such a class runs
            only if it is named on the command line or picked on Locust's page.
    """

    abstract = True
    model: ClassVar[str] = "closed"
    stages: ClassVar[tuple[str, ...]] = ("main",)
    by_name: ClassVar[bool] = False

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._generator = Generator.of(environment)
        self._due: int | None = None
        self._start = monotonic_ns()
        # Locust makes session and pool itself and has no hook for other classes. To change the class in place
        # leaves their settings as they are, and shared what the user's class shares among its users.
        session: Any = self.client
        session.__class__ = _Session
        session.recorded_user = self
        session.request_event = _Verdicts(session.request_event)
        session.client.clientpool.__class__ = RecordingClientPool

    @property
    def recorder(self) -> Recorder | None:
        """What keeps the records of the present run; None outside of a run."""
        return self._generator.recorder if self._generator else None

    def enter(self, stage: str) -> None:
        """Begin a stage of the scenario: what is requested from now on belongs to it."""
        if self.recorder is not None:
            self.recorder.enter(stage)

    def finish(self) -> None:
        """End the run, in all processes: the scenario has done all that it meant to do."""
        if self._generator is not None:
            self._generator.finish()
        raise StopUser

    def events(self, url: str, **kwargs: Any) -> Iterator[str]:
        """Request an event stream, and yield the data of each event as it comes.

        Args:
            url: path or URL.
            kwargs: as for `client.get`, such as `name`.
        """
        response = self.client.get(url, stream=True, **kwargs)._response
        parser = EventParser()
        while response is not None and (line := response.readline(b"\n")):
            yield from parser.feed(line)

    def websocket(self, path: str, name: str | None = None, timeout: float = 30) -> WebSocket:
        """Return a WebSocket to the host, for use in a `with` block.

        Args:
            path: path below the host.
            name: request name; the path where there is none.
            timeout: seconds to wait for the handshake, and for each message.

        Raises:
            RuntimeError: no run is going on.
        """
        if self.recorder is None:
            raise RuntimeError("a WebSocket is opened within a run only")
        url = "ws" + (self.client.base_url or "").removeprefix("http") + path
        return WebSocket(self.recorder, url, request_name("WS", name or path), timeout)

    def plan(self, wait: Callable[..., float], seconds: float) -> None:
        """Note when the task after this think time is due.

        With a pace, a task that took too long makes the next one late: that one is due at the tick, not
        when Locust comes to it.

        Args:
            wait: the function that said how long.
            seconds: what it said.
        """
        scheduled = monotonic_ns() + round(seconds * 1e9)
        pace = _pace(wait)
        self._due = self._start + round(pace * 1e9) if pace is not None and seconds == 0 else scheduled
        self._start = scheduled

    def take_due(self) -> int:
        """Return when a call made now was due: only a task's first one is due before it is made."""
        due, self._due = self._due, None
        now = monotonic_ns()
        return now if due is None else min(due, now)


def request_name(method: str, name: str) -> str:
    """Return the name that a request has in all records: method and route template."""
    return name if name.startswith(method + " ") else f"{method} {name}"


class _Session(FastHttpSession):
    """Locust's session, which tells the transport what each call is called and when it was due."""

    recorded_user: FastHttpUser

    def request(  # type: ignore[override]  # Locust's own list of arguments grows; what is not ours is passed on
        self,
        method: str,
        url: str,
        name: str | None = None,
        data: Any = None,
        catch_response: bool = False,
        *,
        burst: Burst | None = None,
        **kwargs: Any,
    ) -> Any:
        """Send a request, as Locust's `FastHttpSession.request` does.

        Args:
            method: HTTP method.
            url: path or URL.
            name: route template; the path where there is none, without its query.
            data: body.
            catch_response: whether the scenario judges the answer itself, in a `with` block.
            burst: the burst that the request is part of.
            kwargs: Locust's other arguments.
        """
        call, recorder = None, self.recorded_user.recorder
        if recorder is not None:
            named = request_name(method.upper(), name or self.request_name or urlsplit(url).path or "/")
            call = Call(recorder, named, self.recorded_user.take_due(), judged=catch_response, burst=burst)
        token = current.set(call)
        try:
            return super().request(method, url, name, data, catch_response, **kwargs)
        finally:
            current.reset(token)


class _Verdicts:
    """Locust's request event, by way of which the verdict on an answer gets into its record."""

    def __init__(self, hook: Any) -> None:
        self._hook = hook

    def fire(self, **meta: Any) -> None:
        """Take note of the verdict, and fire Locust's event."""
        answer = getattr(meta["response"], "_response", None)
        if isinstance(answer, RecordedResponse) and answer.attempt.call.judged:
            answer.attempt.call.recorder.judge(answer.attempt, _verdict(meta["exception"]))
        self._hook.fire(**meta)


def _verdict(failure: Exception | None) -> str | None:
    if failure is None:
        return None
    return "status" if isinstance(failure, LocustBadStatusCode) else f"failed: {failure}"[:200]


@cache
def _pace(wait: Callable[..., float]) -> float | None:
    """Return the seconds between two ticks of constant_pacing or constant_throughput; None for all others."""
    if getattr(wait, "__qualname__", None) != locust.constant_pacing(1).__qualname__:
        return None
    return float(inspect.getclosurevars(wait).nonlocals["wait_time"])


def _plan_and_sleep(task_set: locust.TaskSet, seconds: float) -> None:
    user = task_set.user
    if isinstance(user, FastHttpUser):
        own = type(task_set).wait_time
        user.plan(type(user).wait_time if own is locust.TaskSet.wait_time else own, seconds)
    gevent.sleep(seconds)


# The one place through which all think time goes; Locust has no event for it.
locust.TaskSet._sleep = _plan_and_sleep  # type: ignore[method-assign]  # see above
