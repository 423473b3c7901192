import io
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from timesplit.errors import ScenarioError, StartError, TargetUnreachable, UsageError
from timesplit.lab.display import Display
from timesplit.lab.forwarding import answers
from timesplit.lab.run import ScenarioRun, require_answer
from timesplit.lab.scenario import Fault, Scenario, paths_scenario
from timesplit.lab.stack import require_port
from timesplit.runfolder import RunFolder

LOCUSTFILE = """
from locust import constant, task
from timesplit.loadgen import FastHttpUser


class Visitor(FastHttpUser):
    wait_time = constant(0.05)

    @task
    def visit(self):
        self.client.get("/")
"""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TIMESPLIT_RUNS", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def scenario(text: str = LOCUSTFILE, **changes: Any) -> Scenario:
    """Write a locustfile into the current folder, and return a short scenario of it."""
    file = Path("visits.py")
    file.write_text(text)
    return Scenario(
        **{"name": "visits", "locustfile": file, "users": 2, "duration": 2, "warmup": 0, **changes}
    )


def prepare(scenario: Scenario, host: str, output: io.StringIO | None = None) -> ScenarioRun:
    display = Display(Console(file=output or io.StringIO(), width=200))
    return ScenarioRun(scenario, display, host)


def test_a_run_is_a_folder_with_the_records_of_all_generator_processes(host: str, tmp_path: Path) -> None:
    output = io.StringIO()

    folder = prepare(scenario(processes=2), host, output).carry_out()

    assert folder.parent == tmp_path / "runs"
    meta = RunFolder.open(folder).meta()
    assert (meta["scenario"], meta["warmup_s"], meta["generators"], meta["faults"]) == ("visits", 0, 2, [])
    assert "ended" in meta
    assert "service" not in meta  # it is not the lab's
    rows = pq.read_table(folder / "client")
    assert set(rows["name"].to_pylist()) == {"GET /"}
    assert len(set(rows["generator"].to_pylist())) == 2
    assert "/s · p99 so far" in output.getvalue()


def test_paths_need_no_locustfile(host: str) -> None:
    chosen = paths_scenario(["/", "/missing?q=1"])
    folder = prepare(scenario(locustfile=chosen.locustfile, paths=chosen.paths), host).carry_out()

    rows = pq.read_table(folder / "client")
    answered = {(row["name"], row["status"]) for row in rows.to_pylist() if row["status"] is not None}
    assert answered == {("GET /", 200), ("GET /missing", 404)}


def test_a_locustfile_that_raises_is_told_with_its_line(host: str) -> None:
    run = prepare(scenario("import locust\n\n1 / 0\n"), host)

    with pytest.raises(
        ScenarioError, match=r"^visits\.py: .*visits\.py:3: ZeroDivisionError: division by zero$"
    ):
        run.carry_out()

    assert run.folder is None


def test_a_user_class_that_is_not_there_is_told(host: str) -> None:
    with pytest.raises(ScenarioError, match=r"visits\.py: Unknown User\(s\): Buyer"):
        prepare(scenario(user_classes=("Buyer",)), host).carry_out()


def test_an_exit_code_of_the_scenarios_own_is_no_error(host: str) -> None:
    text = LOCUSTFILE + (
        "\nfrom locust import events\n\n"
        "@events.quitting.add_listener\n"
        "def judge(environment, **_):\n"
        "    environment.process_exit_code = 7\n"
    )

    assert prepare(scenario(text), host).carry_out().is_dir()


def test_a_killed_generator_is_an_error_and_leaves_its_folder(host: str) -> None:
    text = LOCUSTFILE + (
        "        if self.recorder.tally.begun == 20:\n            import os; os.kill(os.getpid(), 9)\n"
    )
    run = prepare(scenario(text, duration=30), host)

    with pytest.raises(StartError, match="locust was ended by signal 9"):
        run.carry_out()

    assert run.folder is not None
    assert "ended" not in RunFolder.open(run.folder).meta()


def test_faults_need_the_demo_service(host: str) -> None:
    with pytest.raises(UsageError, match="run it without --host"):
        prepare(scenario(faults=(Fault(1, "job-worker"),)), host).carry_out()


def test_a_host_where_nothing_listens_is_unreachable() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

        with pytest.raises(
            TargetUnreachable, match=rf"127\.0\.0\.1:{port} does not answer \(Connection refused\)"
        ):
            require_answer(f"http://127.0.0.1:{port}")


def test_a_port_that_is_taken_is_refused_and_a_free_one_is_not(host: str) -> None:
    with pytest.raises(UsageError, match="Address already in use; choose another with --port"):
        require_port(int(host.rpartition(":")[2]))

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert require_port(port) == port


def test_only_success_is_an_answer(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert answers(host + "/")
    assert not answers(host + "/missing")
    assert not answers("http://127.0.0.1:1/")


def test_nothing_is_left_of_a_run(host: str) -> None:
    before = set(psutil.Process().children(recursive=True))

    prepare(scenario(duration=1), host).carry_out()

    assert set(psutil.Process().children(recursive=True)) <= before
