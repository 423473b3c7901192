from collections.abc import Iterator
from typing import Any

import fastapi.routing
import gunicorn.workers.gasgi  # type: ignore[import-untyped]  # ships no types
import opentelemetry.sdk.trace
import pytest
import starlette.applications
import starlette.routing
import uvicorn.server

import timesplit
from timesplit.errors import UsageError
from timesplit.instrumentation import agent as agents
from timesplit.instrumentation import doctor
from timesplit.instrumentation.agent import LIBRARIES, Agent
from timesplit.instrumentation.hooks import Hooks

TOUCHED: list[Any] = [
    fastapi.FastAPI,
    fastapi.routing.APIRoute,
    gunicorn.workers.gasgi.ASGIWorker,
    opentelemetry.sdk.trace.Tracer,
    starlette.applications.Starlette,
    starlette.routing.Mount,
    starlette.routing.Route,
    starlette.routing.WebSocketRoute,
    uvicorn.server.Server,
]


class Server:
    def start(self) -> str:
        return "started"


class Child(Server):
    pass


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.disarm()


def test_a_hook_is_replaced_once_and_taken_back() -> None:
    before = dict(vars(Server))
    hooks = Hooks()
    for _ in range(2):
        assert hooks.replace("start", Server, "start", lambda start: lambda self: f"watched {start(self)}")
    assert Server().start() == "watched started"
    hooks.undo()
    assert dict(vars(Server)) == before


def test_an_inherited_attribute_is_deleted_again() -> None:
    hooks = Hooks()
    hooks.replace("start", Child, "start", lambda start: lambda self: "child's")
    assert Child().start() == "child's"
    assert Server().start() == "started"
    hooks.give_back("start", "not needed")
    assert "start" not in vars(Child)
    assert hooks.found["start"].why == "not needed"


def test_a_hook_that_somebody_else_has_replaced_since_is_left_to_them() -> None:
    hooks = Hooks()
    hooks.replace("start", Child, "start", lambda start: start)
    Child.start = theirs = lambda self: "theirs"  # type: ignore[method-assign]  # a patch
    hooks.undo()
    assert vars(Child)["start"] is theirs
    del Child.start


def test_what_is_missing_is_said_and_nothing_else_is_touched() -> None:
    hooks = Hooks()
    assert not hooks.replace("stop", Server, "stop", lambda stop: stop)
    assert hooks.found["stop"].why == "Server has no stop"


def test_uninstrument_leaves_every_class_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    timesplit.uninstrument()  # whatever was armed before this test
    monkeypatch.setenv("TIMESPLIT_TRACES", "ledger")
    before = [dict(vars(owner)) for owner in TOUCHED]
    timesplit.instrument(fastapi.FastAPI())
    changed = [owner for owner, was in zip(TOUCHED, before, strict=True) if dict(vars(owner)) != was]
    timesplit.uninstrument()
    assert changed == TOUCHED
    assert [dict(vars(owner)) for owner in TOUCHED] == before


def test_all_hooks_of_all_libraries_are_taken_back(agent: Agent) -> None:
    agent.arm()
    owners = [hook.owner for hook in agent.hooks._replaced]
    agent.disarm()
    before = [dict(vars(owner)) for owner in owners]
    agent.arm()
    assert [dict(vars(owner)) for owner in owners] != before
    agent.disarm()
    assert [dict(vars(owner)) for owner in owners] == before


def test_an_arming_function_that_fails_is_said_and_the_rest_is_armed(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Agent) -> None:
        raise AttributeError("no such thing in this version")

    monkeypatch.setitem(LIBRARIES, "uvicorn.server", fail)
    agent.arm()
    assert "no such thing" in agent.hooks.found["uvicorn.server"].why
    assert agent.hooks.armed("starlette Route.handle")


@pytest.mark.parametrize(
    ("traces", "off", "armed"),
    [("ledger", "", True), ("otel", "", True), ("off", "", False), ("ledger", "off", False)],
)
def test_what_the_environment_says_is_done(
    traces: str, off: str, armed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIMESPLIT_TRACES", traces)
    monkeypatch.setenv("TIMESPLIT", off)
    made: list[object] = []
    monkeypatch.setattr("timesplit.instrumentation.make_spans", lambda app, asked: made.append(app))
    app = fastapi.FastAPI()
    try:
        assert timesplit.instrument(app) is app
        assert bool(agents._process) is armed
        assert made == ([app] if traces == "otel" else [])
    finally:
        timesplit.uninstrument()


def test_an_unknown_mode_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMESPLIT_TRACES", "jaeger")
    with pytest.raises(UsageError, match="TIMESPLIT_TRACES=jaeger: use one of ledger, otel, off"):
        timesplit.instrument(fastapi.FastAPI())


def test_doctor_tells_of_each_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIBRARIES, "nowhere.to_be_found", lambda agent: None)
    before = [dict(vars(owner)) for owner in TOUCHED]
    facts = doctor.examine()
    assert [dict(vars(owner)) for owner in TOUCHED] == before
    hooks = {hook["name"]: hook for hook in facts["hooks"]}
    assert hooks["uvicorn Server.startup"]["armed"]
    assert hooks["nowhere.to_be_found"]["why"] == "not armed: nowhere is not installed"
    assert facts["loops"] == {"asyncio": "armed", "uvloop": "armed"}
    assert any(line.split() == ["uvicorn", "Server.startup", "armed"] for line in doctor.lines(facts))
