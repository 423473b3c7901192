"""Requests are recorded once each, with their route's template, whatever serves and whatever is served."""

import shutil
import time
from pathlib import Path

import pytest

from tests.integration.agent_commands import PYTHON, serve_command
from tests.truth.served import Service
from timesplit.instrumentation import inject

UVICORN = [PYTHON, "-m", "uvicorn", "--port", "{port}", "--log-level", "critical"]
GUNICORN = [
    PYTHON,
    "-m",
    "gunicorn",
    "--bind",
    "127.0.0.1:{port}",
    "--no-control-socket",
    "--log-level",
    "critical",
]
UVICORN_WORKER = [*GUNICORN, "--worker-class", "uvicorn_worker.UvicornWorker"]
FASTAPI = {
    "/users/7": "/users/{user_id}",
    "/fails": "/fails",
    "/v1/shops/a/items/b": "/v1/shops/{shop}/items/{item}",
    "/tenants/a/orders/b": "/tenants/{tenant}/orders/{order}",
    "/tenants/a/nothing": "/tenants/{tenant}/{path}",
    "/old/p/q": "/old/p/{q}",
    "/old/deep/w": "/old/deep/w",
    "/nothing": "",
}
UNKNOWN = {"/users/7": "", "/nothing": ""}
COMMANDS = {
    "uvicorn": ([*UVICORN, "agent_apps:app"], FASTAPI),
    "uvicorn, asyncio, h11, no lifespan": (
        [*UVICORN, "--loop", "asyncio", "--http", "h11", "--lifespan", "off", "agent_apps:app"],
        FASTAPI,
    ),
    "uvicorn, two workers, factory": (
        [*UVICORN, "--workers", "2", "--factory", "agent_apps:create"],
        FASTAPI,
    ),
    "a program that calls uvicorn": ([PYTHON, "agent_apps.py", "{port}"], FASTAPI),
    "a layer that copies the scope": ([*UVICORN, "agent_apps:wrapped"], FASTAPI),
    "ASGI 2": ([*UVICORN, "agent_apps:Double"], FASTAPI),
    "Starlette": ([*UVICORN, "agent_apps:starlette"], {"/users/7": "/users/{user_id}", "/nothing": ""}),
    "no framework": ([*UVICORN, "agent_apps:function"], UNKNOWN),
    "gunicorn with uvicorn's worker, preloaded": (
        [*UVICORN_WORKER, "--preload", "--workers", "2", "agent_apps:wrapped"],
        FASTAPI,
    ),
    "gunicorn's own worker": ([*GUNICORN, "--worker-class", "asgi", "agent_apps:wrapped"], FASTAPI),
    "gunicorn's own worker, preloaded": (
        [*GUNICORN, "--worker-class", "asgi", "--preload", "--workers", "2", "agent_apps:function"],
        UNKNOWN,
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the applications, and nothing else of ours."""
    shutil.copy(Path(__file__).with_name("agent_apps.py"), tmp_path)
    return tmp_path


def requests_of(service: Service) -> dict[str, str]:
    """Return the route of each finished record by trace id; a second record of a request fails."""
    accounts = [account for worker in service.workers() for account in worker.requests if account.done]
    routes = {account.traceparent[3:35]: account.route for account in accounts}
    assert len(routes) == len(accounts)
    return routes


@pytest.mark.parametrize("name", COMMANDS)
def test_one_record_for_each_request(name: str, folder: Path) -> None:
    command, expected = COMMANDS[name]
    with serve_command(command, folder) as service:
        asked = {path: service.get(path) for path in expected}
        found = {path: service.account(answer) for path, answer in asked.items()}
        assert {path: account.route for path, account in found.items()} == expected
        assert {account.status for account in found.values()} <= {200, 404, 500}
        assert {path: account.status for path, account in found.items()} == {
            path: answer.status for path, answer in asked.items()
        }
        assert set(requests_of(service)) >= {answer.trace for answer in asked.values()}
        assert all(worker.header["failed"] == 0 for worker in service.workers())


def test_workers_that_are_replaced_write_journals_of_their_own(folder: Path) -> None:
    command = [*UVICORN_WORKER, "--max-requests", "3", "agent_apps:app"]
    with serve_command(command, folder) as service:
        traces: set[str] = set()
        deadline = time.monotonic() + 20
        while len(service.workers()) < 3 and time.monotonic() < deadline:
            traces |= answered(service)
        assert len({worker.header["pid"] for worker in service.workers()}) >= 3
        assert traces <= set(requests_of(service))


def answered(service: Service) -> set[str]:
    """Return the trace of a request; none where the worker had just ended."""
    try:
        answer = service.get("/users/1")
    except OSError:
        time.sleep(0.1)
        return set()
    service.account(answer)
    return {answer.trace}


@pytest.mark.parametrize(
    "env", [{"TIMESPLIT": "off"}, {"TIMESPLIT_TRACES": "off"}, {"TIMESPLIT_TRACES": "unheard of"}], ids=str
)
def test_a_service_runs_without_records_where_none_are_wanted(env: dict[str, str], folder: Path) -> None:
    with serve_command([*UVICORN, "agent_apps:app"], folder, env) as service:
        assert service.get("/users/7").status == 200
        assert not inject.anything_armed(service.journals)


def test_a_service_runs_where_the_journal_cannot_be_made(folder: Path) -> None:
    (folder / "journals").write_text("no folder")
    with serve_command([*UVICORN, "agent_apps:app"], folder) as service:
        assert service.get("/users/7").status == 200


def test_an_application_that_arms_itself_is_recorded_once(folder: Path) -> None:
    (folder / "itself.py").write_text(
        "import timesplit\nfrom agent_apps import app\nassert timesplit.instrument(app) is app\n"
    )
    with serve_command([*UVICORN, "itself:app"], folder) as service:
        assert service.account(service.get("/users/7")).route == "/users/{user_id}"
        requests_of(service)
