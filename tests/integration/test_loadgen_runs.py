"""A run from its first request to its last: one process or several, ended or killed."""

import json
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.generator_target import Run, Target, free_port, lines, load, processes, scenario, wait_for
from timesplit.schema import CLIENT, HOSTS

MS = 1_000_000
STEADY = """
class Steady(FastHttpUser):
    wait_time = constant(0.01)

    @task
    def ask(self):
        self.client.get("/ok")
"""


class Collector(ThreadingHTTPServer):
    """Takes OTLP spans; `silent` ones never answer."""

    def __init__(self, *, silent: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []
        self.released = threading.Event()
        if not silent:
            self.released.set()

    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        scopes = [scope for request in requests for rs in request.resource_spans for scope in rs.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.server.released.wait()
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collecting(*, silent: bool = False) -> Iterator[Collector]:
    """Run a collector."""
    server = Collector(silent=silent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


def ids_of(rows: Iterable[dict[str, Any]]) -> list[tuple[bytes, bytes]]:
    return sorted((row["trace_id"], row["span_id"]) for row in rows)


def sent(rows: Iterable[dict[str, Any]]) -> list[tuple[bytes, bytes]]:
    return ids_of(row for row in rows if row["sent"])


def seen_by(target: Target) -> list[tuple[bytes, bytes]]:
    return sorted(seen.ids for seen in target.seen)


@dataclass
class Observed:
    """A run with all that it told others."""

    run: Run
    progress: list[dict[str, Any]]
    spans: list[Span]
    url: str


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    (folder / "scenario.toml").write_text('title = "A title"\nquestion = "Why?"\n')
    with Target() as target, collecting() as collector:
        run = load(
            folder,
            STEADY,
            target.url.replace("//", "//me:secret@"),
            *("-u", "3", "-r", "3", "-t", "4s"),
            TIMESPLIT_PROGRESS=str(folder / "progress"),
            TIMESPLIT_TRACES="otel",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        )
        yield Observed(run, lines(folder / "progress"), collector.spans(), target.url)


def test_a_run_says_what_it_is(observed: Observed) -> None:
    meta = observed.run.meta

    assert (meta["scenario"], meta["title"], meta["question"]) == ("scenario", "A title", "Why?")
    assert (meta["model"], meta["stages"], meta["warmup_s"]) == ("closed", ["main"], 0)
    assert (meta["users"], meta["generators"], meta["traces"]) == (3, 1, "otel")
    assert meta["host"] == observed.url
    assert "secret" not in json.dumps(meta)
    assert 3.5e9 < meta["ended"]["monotonic"] - meta["began"]["monotonic"] < 5e9
    assert abs(meta["ended"]["utc"] - time.time_ns()) < 60e9
    assert meta["versions"]["locust"]


def test_progress_is_told_once_a_second_from_the_start(observed: Observed) -> None:
    told, rows = observed.progress, observed.run.rows(CLIENT)

    assert (told[0]["run"], told[0]["begun"], told[0]["p99_ms"]) == (
        str(observed.run.path.resolve()),
        0,
        None,
    )
    assert 4 <= len(told) <= 7
    assert told[-1]["begun"] == len(rows)
    assert told[-1]["answered"] == len([row for row in rows if row["status"]])
    assert told[-1]["errors"] == len([row for row in rows if row["error"]])
    assert 50 < told[2]["rate"] < 300
    response_ms = sorted((row["done"] - row["intended"]) / MS for row in rows if row["done"])
    assert told[-1]["p99_ms"] == pytest.approx(response_ms[int(0.99 * len(response_ms))], rel=0.1)


def test_each_attempt_is_a_client_span_as_well(observed: Observed) -> None:
    assert sorted((span.trace_id, span.span_id) for span in observed.spans) == ids_of(
        observed.run.rows(CLIENT)
    )
    assert {span.name for span in observed.spans} == {"GET /ok"}


def test_a_collector_that_hangs_costs_spans_and_nothing_else(target: Target, tmp_path: Path) -> None:
    with collecting(silent=True) as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        run = load(tmp_path, STEADY, target.url, "-u", "3", "-r", "3", "-t", "1s", **environment)
    rows = run.rows(CLIENT)
    last = next(row for row in run.rows(HOSTS) if row["written"] is not None)

    assert sent(rows) == seen_by(target)
    assert max(row["done"] - row["intended"] for row in rows if row["done"]) < 1000 * MS
    assert json.loads(last["configuration"]) == {"spans_sent": 0, "spans_dropped": len(rows)}
    assert "did not reach" in run.output


def test_attempts_that_are_open_at_the_end_are_rows(target: Target, tmp_path: Path) -> None:
    text = """
    class Patient(FastHttpUser):
        @task
        def wait_long(self):
            self.client.get("/slow?60")
    """
    rows = load(tmp_path, text, target.url, "-u", "4", "-r", "4", "-t", "1s").rows(CLIENT)

    assert [row["error"] for row in rows] == ["unfinished"] * 4
    assert all(row["sent"] and row["done"] is None and row["status"] is None for row in rows)


def test_several_processes_make_one_run_that_lacks_nothing_and_doubles_nothing(
    target: Target, tmp_path: Path
) -> None:
    told = tmp_path / "progress"
    arguments = ("-u", "8", "-r", "8", *processes(2))
    with scenario(tmp_path, STEADY, target.url, *arguments, TIMESPLIT_PROGRESS=str(told)) as generator:
        wait_for(lambda: len(target.seen) > 1000)
        generator.process.send_signal(signal.SIGINT)  # as Ctrl-C does: an ordinary end
        run = generator.finish()
    rows = run.rows(CLIENT)
    ends = [row for row in run.rows(HOSTS) if row["written"] is not None]

    assert len(list(run.path.parent.iterdir())) == 2  # the run, and `latest`
    assert sent(rows) == seen_by(target)
    assert len(set(ids_of(rows))) == len(rows)
    assert len({row["generator"] for row in rows}) == len(ends) == run.meta["generators"] == 2
    assert sum(row["written"] for row in ends) == sum(row["forwarded"] for row in ends) == len(rows)
    assert run.meta["ended"]
    assert lines(told)[-1]["begun"] == len(rows)
    assert lines(told)[-1]["p99_ms"] is not None


def test_a_worker_that_comes_late_takes_part_in_the_run(target: Target, tmp_path: Path) -> None:
    port = free_port()
    lead = ("--master", "--master-bind-port", port, "--expect-workers", "1", "--enable-rebalancing")
    follow = ("--worker", "--master-port", port)
    with ExitStack() as started:
        master = started.enter_context(scenario(tmp_path, STEADY, target.url, *lead, "-u", "4", "-r", "4"))
        started.enter_context(scenario(tmp_path, STEADY, target.url, *follow))
        wait_for(lambda: bool(target.seen))
        started.enter_context(scenario(tmp_path, STEADY, target.url, *follow))
        run = Run(master.runs / "latest")
        wait_for(lambda: len({row["generator"] for row in run.rows(CLIENT)}) == 2)
        master.process.send_signal(signal.SIGINT)
        master.process.wait()
        wait_for(lambda: len([row for row in run.rows(HOSTS) if row["written"] is not None]) == 2)

    assert sent(run.rows(CLIENT)) == seen_by(target)
    assert {row["trace_id"][:8].hex() for row in run.rows(CLIENT)} == {run.meta["key"]}


def test_each_start_is_a_run_with_a_key_of_its_own(target: Target, tmp_path: Path) -> None:
    restart = """
    @events.init.add_listener
    def start_again(environment, runner, **_):
        def again():
            gevent.sleep(1)
            runner.stop()
            runner.start(2, 2)
        gevent.spawn(again)
    """
    run = load(tmp_path, STEADY + restart, target.url, "-u", "2", "-r", "2", "-t", "3s")
    folders = [path for path in run.path.parent.iterdir() if not path.is_symlink()]
    first, last = sorted(map(Run, folders), key=lambda one: one.meta["began"]["monotonic"])

    assert first.meta["key"] != last.meta["key"]
    for one in (first, last):
        assert {row["trace_id"][:8].hex() for row in one.rows(CLIENT)} == {one.meta["key"]}
    assert sent([*first.rows(CLIENT), *last.rows(CLIENT)]) == seen_by(target)
    assert run.path.resolve() == last.path


def test_a_killed_generator_leaves_all_but_the_last_seconds(target: Target, tmp_path: Path) -> None:
    with scenario(tmp_path, STEADY, target.url, "-u", "5", "-r", "5") as generator:
        wait_for(lambda: len(target.seen) > 1200)
        generator.process.kill()
        generator.process.wait()
    killed_at, run = time.monotonic_ns(), Run(generator.runs / "latest")
    written = set(ids_of(run.rows(CLIENT)))
    missing = [seen for seen in target.seen if seen.ids not in written]

    assert "ended" not in run.meta
    assert len(written) > 100
    assert missing
    assert all(killed_at - seen.at < 3.5e9 for seen in missing)


def test_where_records_cannot_be_written_no_load_is_made(target: Target, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    runs = str(tmp_path / "file" / "runs")
    with scenario(tmp_path, STEADY, target.url, "-t", "5s", TIMESPLIT_RUNS=runs) as generator:
        output = generator.finish(exit_code=2).output

    assert [line for line in output.splitlines() if "ERROR" in line and "timesplit: " in line]
    assert "Traceback" not in output
    assert not target.seen


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        (["--processes"], {"GET /default"}),
        (["Chosen"], {"GET /chosen"}),
        (["Chosen", "Default"], {"GET /default", "GET /chosen"}),
    ],
)
def test_classes_marked_by_name_run_only_when_they_are_named(
    target: Target, tmp_path: Path, arguments: list[str], ran: set[str]
) -> None:
    text = """
    class Default(FastHttpUser):
        wait_time = constant(0.1)

        @task
        def ask(self):
            self.client.get("/ok", name="/default")

    class Chosen(FastHttpUser):
        by_name = True
        wait_time = constant(0.1)

        @task
        def ask(self):
            self.client.get("/ok", name="/chosen")
    """
    given = processes(2) if arguments == ["--processes"] else arguments
    run = load(tmp_path, text, target.url, "-u", "4", "-r", "4", "-t", "1s", *given)

    assert {row["name"] for row in run.rows(CLIENT)} == ran
