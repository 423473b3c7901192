"""What is left of a request whose worker was killed: its part, and the line where it was."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.journal_reader import Account
from tests.truth.served import (
    ASYNCIO,
    GUNICORN_ASGI,
    GUNICORN_UVICORN,
    MS,
    UVLOOP,
    Server,
    Service,
    encode,
    name,
    serve,
    until,
)
from tests.truth.test_truth_loop import line_of


@contextmanager
def under_way(service: Service, path: str, trace: str) -> Iterator[None]:
    """Make a request, and leave it under way."""
    with service.connect() as connection:
        connection.sendall(encode("GET", path, trace))
        until(lambda: service.find(trace, done=False), "the request does not begin")
        yield


def kill(service: Service) -> int:
    """Kill the worker; return when."""
    (worker,) = service.workers()
    now = time.monotonic_ns()
    os.kill(worker.header["pid"], signal.SIGKILL)
    return now


@pytest.mark.parametrize("server", [UVLOOP, ASYNCIO], ids=name)
@pytest.mark.parametrize(
    ("path", "part"), [("/sleep?seconds=9", "other_wait"), ("/blocking?seconds=9", "route")]
)
def test_a_killed_request_tells_what_it_was_doing(
    server: Server, path: str, part: str, tmp_path: Path
) -> None:
    trace = f"{0x15:032x}"
    with serve("tests.truth.plain_routes:app", server, tmp_path) as service:
        with under_way(service, path, trace):
            time.sleep(0.2)
            killed = kill(service)
            service.process.wait(5)
        account = service.find(trace, done=False)
        assert account is not None
        assert (account.doing, account.number > 0) == (part, True)
        assert 150 * MS < killed - account.since < 2000 * MS
        steps = open_steps(service, account)
        if part == "route":
            (step,) = steps
            assert Path(step["file"]).name == "plain_routes.py"
            assert (step["line"], step["function"]) == (line_of("time.sleep(seconds)  # noqa"), "blocking")
            assert step["owner"] == "GET /blocking"
        else:
            assert steps == []


def open_steps(service: Service, account: Account) -> list[dict[str, Any]]:
    """Return the steps of a request that were still running."""
    return [s for s in service.records("step") if s["state"] == 1 and s["number"] == account.number]


@pytest.mark.parametrize("server", [GUNICORN_ASGI, GUNICORN_UVICORN], ids=name)
def test_the_request_that_made_gunicorn_kill_its_worker_is_known(server: Server, tmp_path: Path) -> None:
    trace = f"{0x16:032x}"
    with serve("tests.truth.plain_routes:app", server, tmp_path) as service:
        (first,) = service.workers()
        with under_way(service, "/blocking?seconds=30", trace):
            until(lambda: None if alive(first.header["pid"]) else True, "the worker is not killed", 15)
        account = service.find(trace, done=False)
        assert account is not None
        assert account.doing == "route"
        (step,) = open_steps(service, account)
        assert step["function"] == "blocking"
        assert service.get("/quick").status == 200  # another worker took over, with a journal of its own
        assert len(service.workers()) == 2


def alive(pid: int) -> bool:
    """Tell whether a process is there, and not a zombie."""
    with suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_what_comes_after_a_response_is_no_killed_request(tmp_path: Path) -> None:
    with serve("tests.truth.plain_routes:app", UVLOOP, tmp_path) as service:
        answer = service.get("/background-forever")
        time.sleep(0.1)
        kill(service)
        service.process.wait(5)
        account = service.find(answer.trace, done=True) or service.find(answer.trace, done=False)
        assert account is not None
        assert account.done or account.doing == ""


def test_requests_of_several_threads_while_the_journal_is_read(tmp_path: Path) -> None:
    with serve("tests.truth.plain_routes:app", UVLOOP, tmp_path) as service:
        threads = [
            threading.Thread(target=lambda: [service.get("/quick") for _ in range(20)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for worker in service.workers():
                assert all(a.parts == {} or a.total >= 0 for a in worker.requests)
        for thread in threads:
            thread.join()
