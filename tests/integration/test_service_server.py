import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from timesplit.lab.forwarding import answers
from timesplit.lab.processes import Child, Processes, free_port

Serve = Callable[..., tuple[Child, str]]


@pytest.fixture
def serve(processes: Processes, service_environment: dict[str, str]) -> Iterator[Serve]:
    """Starts the service under gunicorn, with further variables, and waits until it is ready."""
    started: list[Child] = []

    def serve(**variables: str) -> tuple[Child, str]:
        address = f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--bind", address]
        environment = {**service_environment, **variables}
        child = processes.start("service", [*command, "service.app:create_app()"], env=environment)
        started.append(child)
        child.wait_ready(lambda: answers(f"http://{address}/readyz"))
        return child, address

    yield serve
    for child in started:
        processes.stop(child)


def get(address: str, path: str) -> httpx.Response:
    return httpx.get(f"http://{address}{path}", timeout=30, trust_env=False)


def test_a_service_told_to_stop_answers_what_it_began_and_ends_its_streams(serve: Serve) -> None:
    child, address = serve()
    job_id = httpx.post(f"http://{address}/jobs", trust_env=False).json()["job_id"]
    paths = ["/async-sleep?delay=1", "/sync-blocking?delay=1", "/slow-query?seconds=1"]
    paths += ["/stream/tokens?tokens=1000&interval=5", f"/jobs/{job_id}/events"]
    with ThreadPoolExecutor() as clients, connect(f"ws://{address}/stream/echo", proxy=None) as socket:
        assert echoed(socket, "text") == "text"
        assert echoed(socket, b"bytes") == b"bytes"
        begun = [clients.submit(get, address, path) for path in paths]
        time.sleep(0.5)

        child.signal(signal.SIGTERM)

        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(10)
        answers = [answer.result(10) for answer in begun]
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert [answer.status_code for answer in answers] == [200] * len(paths)
    assert answers[3].text.endswith("id: 0\n\n")
    assert answers[4].text.startswith("event: queued\n")
    assert child.wait(10) == 0
    assert "Application shutdown complete" in child.output()
    assert "Traceback" not in child.output()


def echoed(socket: ClientConnection, message: str | bytes) -> str | bytes:
    socket.send(message)
    return socket.recv(10)


def test_a_request_that_does_not_end_cannot_keep_the_service_from_stopping(
    serve: Serve, upstream: str
) -> None:
    # uvicorn's share of the graceful timeout is what gunicorn has, less 5 s.
    child, address = serve(GRACEFUL_TIMEOUT="6")
    behave(upstream, hang_rate=1)
    try:
        with ThreadPoolExecutor() as clients:
            stuck = clients.submit(get, address, "/no-timeout/1")
            time.sleep(0.5)

            child.signal(signal.SIGTERM)

            assert child.wait(10) == 0
            assert isinstance(stuck.exception(10), httpx.HTTPError) or stuck.result().is_error
    finally:
        behave(upstream)
    assert "Application shutdown complete" in child.output()


def behave(upstream: str, **behaviour: float) -> None:
    httpx.put(f"{upstream}/behaviour", json={"mean": 0, **behaviour}, trust_env=False).raise_for_status()


def test_answers_come_before_what_follows_them_and_who_leaves_a_stream_leaves_no_connection(
    serve: Serve,
) -> None:
    child, address = serve(DATABASE_POOL_SIZE="1", DATABASE_MAX_OVERFLOW="0", DATABASE_POOL_TIMEOUT="1")
    job_id = httpx.post(f"http://{address}/jobs", trust_env=False).json()["job_id"]
    for _ in range(3):
        with httpx.stream("GET", f"http://{address}/jobs/{job_id}/events", trust_env=False) as stream:
            next(stream.iter_lines())
    began = time.monotonic()
    teardown = get(address, "/teardown?delay=2")
    took = time.monotonic() - began

    assert get(address, f"/jobs/{job_id}").status_code == 200
    assert teardown.json() == {"seconds": 2}
    assert took < 2
    child.signal(signal.SIGTERM)
    assert child.wait(10) == 0
    assert "Traceback" not in child.output()


def test_a_worker_whose_event_loop_hangs_is_replaced_and_says_where_it_hung(serve: Serve) -> None:
    child, address = serve(WORKER_TIMEOUT="1")
    (hung,) = psutil.Process(child.pid).children()

    with pytest.raises(httpx.HTTPError):
        get(address, "/blocking-in-async?delay=5")

    hung.wait(10)
    assert get(address, "/healthz").status_code == 200
    assert "Fatal Python error: Aborted" in child.output()
    assert "in mistake_blocking_in_async" in child.output()


STARTS = {
    "gunicorn": "gunicorn -c deploy/gunicorn.conf.py service.app:create_app()",
    "uvicorn": "uvicorn --factory service.app:create_app",
    "job worker": "service.worker",
    "schema": "service.database migrate",
    "upstream": "service.upstream --port 1",
}


@pytest.fixture(scope="module")
def wrong_starts(processes: Processes, service_environment: dict[str, str]) -> dict[str, Child]:
    """Everything, started at once with wrong settings."""
    wrong = {"THREAD_TOKENS": "many", "CACHE_URL": "", "JOB_HEARTBEAT": "0", "UPSTREAM_MEAN": "-1"}
    return {
        name: processes.start(
            f"wrong {name}", [sys.executable, "-m", *command.split()], env={**service_environment, **wrong}
        )
        for name, command in STARTS.items()
    }


@pytest.mark.parametrize("name", STARTS)
def test_wrong_settings_stop_the_start_with_one_message(wrong_starts: dict[str, Child], name: str) -> None:
    child = wrong_starts[name]

    assert child.wait(30) == 1
    title, *problems = child.output().splitlines()
    assert title.startswith("The settings do not fit")
    assert [line.split(":")[0].split("=")[0].strip() for line in problems] == (
        ["UPSTREAM_MEAN"] if name == "upstream" else ["CACHE_URL", "THREAD_TOKENS", "JOB_HEARTBEAT"]
    )
