"""`timesplit run`, as typed: the demo service, real load, the run folder, the report."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.acceptance.lab import Lab, wait_for

SHORT_BURSTS = '''
"""The bursts of loadtests/bursts.py, but one of each size on two of the routes."""

from timesplit.loadgen import BurstUser


class ShortBursts(BurstUser):
    paths = ("/async-sleep", "/blocking-in-async")
    sizes = {"burst-20": 20, "burst-100": 100}
    rounds = 1
'''

FEW_JOBS = """
from timesplit.loadgen import JobUser


class FewJobs(JobUser):
    count = 50
"""
FAULTS = """
warmup = 0
workers = 1
[[fault]]
at = 1
process = "job-worker"
restart = true
[[fault]]
at = 1.5
process = "service-worker"
"""


def test_bursts_over_real_sockets_show_the_wait_that_a_span_does_not(lab: Lab, tmp_path: Path) -> None:
    scenario = tmp_path / "short.py"
    scenario.write_text(SHORT_BURSTS)
    scenario.with_suffix(".toml").write_text(
        "users = 1\nwarmup = 0\nworkers = 1\nservice = { THREAD_TOKENS = 40 }\n"
    )

    ended = lab.run("run", str(scenario))

    assert ended.returncode == 0, ended.stderr
    folder = Path(ended.stdout.splitlines()[-1])
    assert (folder / "report.html").is_file()
    meta = json.loads((folder / "run.json").read_text())
    assert meta["service"] == {"WEB_CONCURRENCY": "1", "THREAD_TOKENS": "40", "TIMESPLIT_TRACES": "ledger"}
    assert counts(folder) == (240, 240, 240)
    # 100 calls of 50 ms one after the other on one event loop, of which a span sees its own only.
    waited, span = slowest_ms(folder, "GET /blocking-in-async")
    assert waited > 5_000
    assert span < waited / 10
    assert slowest_ms(folder, "GET /async-sleep")[0] < waited / 5
    lab.wait_until_gone(0)


def test_jobs_outlive_the_workers_that_are_killed_on_the_way(lab: Lab, tmp_path: Path) -> None:
    scenario = tmp_path / "few.py"
    scenario.write_text(FEW_JOBS)
    scenario.with_suffix(".toml").write_text(FAULTS)

    ended = lab.run("run", str(scenario))

    assert ended.returncode == 0, ended.stderr
    folder = Path(ended.stdout.splitlines()[-1])
    faults = json.loads((folder / "run.json").read_text())["faults"]
    assert [(fault["process"], fault["signal"]) for fault in faults] == [
        ("job-worker", "KILL"),
        ("service-worker", "KILL"),
    ]
    assert 1 <= faults[0]["done_at"] <= faults[1]["done_at"]
    assert len({fault["pid"] for fault in faults}) == 2
    jobs = pq.read_table(folder / "jobs")
    assert jobs.num_rows >= 48  # what the service's worker was answering when it was killed was not accepted
    assert set(jobs["state"].to_pylist()) == {"finished"}
    assert set(jobs["effects"].to_pylist()) == {1}


def test_an_interrupted_run_stops_everything_and_keeps_what_there_is(lab: Lab) -> None:
    command = lab.start("run", "mixed", "-u", "5", "-t", "300s", "--workers", "2")
    folder = wait_for_rows(lab)

    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)

    assert command.returncode == 130
    assert err == ""
    assert out.splitlines()[-1] == str(folder)
    lab.wait_until_gone(0)
    meta = json.loads((folder / "run.json").read_text())
    assert "ended" in meta
    assert meta["service"]["WEB_CONCURRENCY"] == "2"
    again = lab.run("report", str(folder))
    assert again.returncode == 0, again.stderr


def test_nothing_survives_a_killed_timesplit(lab: Lab) -> None:
    command = lab.start("run", "mixed", "-u", "5", "-t", "300s", "--workers", "2", "--processes", "2")
    wait_for_rows(lab)
    names = {process.name() for process in lab.processes()}
    assert {"postgres", "valkey-server", "python"} <= names
    assert (
        len(lab.processes()) > 15
    )  # gunicorn and its workers, Locust and its, PostgreSQL's many, and the others

    command.kill()

    lab.wait_until_gone()


def test_a_service_that_runs_already_is_driven_by_path(lab: Lab) -> None:
    serving = lab.start("serve", "--workers", "1")
    assert serving.stdout is not None
    url = next(line for line in serving.stdout if "answers at" in line).split("answers at ")[1].split(";")[0]

    ended = lab.run(
        "run", "--host", url, "--path", "/healthz", "--path", "/users/1?x=1", "-u", "2", "-t", "3s"
    )
    serving.send_signal(signal.SIGTERM)
    serving.communicate(timeout=60)

    assert ended.returncode == 0, ended.stderr
    folder = Path(ended.stdout.splitlines()[-1])
    assert set(pq.read_table(folder / "client")["name"].to_pylist()) == {"GET /healthz", "GET /users/1"}
    assert serving.returncode == 130
    lab.wait_until_gone(0)


def test_what_cannot_work_is_one_line_on_standard_error_and_exit_code_2(lab: Lab, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import locust\n\nprices = {}\nprices['tea']\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound and not listening: connections are refused

        assert_one_line(lab.run("run", "mixde"), "did you mean 'mixed'?")
        assert_one_line(lab.run("run", "mixed", "--host", f"http://127.0.0.1:{port}"), "does not answer")
        taken.listen()
        assert_one_line(lab.run("run", "mixed", "--port", str(port)), f"port {port}: Address already in use")
        raised = lab.run("run", str(broken), "--host", f"http://127.0.0.1:{port}")
        assert_one_line(raised, f"{broken}:4: KeyError: 'tea'")


@pytest.mark.parametrize(
    ("text", "told"), [("{", "the run is cut short"), ('{"schema": 99}', "its records have schema 99")]
)
def test_a_run_folder_that_cannot_be_read_is_one_line(lab: Lab, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "run.json").write_text(text)

    assert_one_line(lab.run("report", str(tmp_path)), told)


def assert_one_line(ended: subprocess.CompletedProcess[str], told: str) -> None:
    assert ended.returncode == 2
    assert ended.stderr.startswith("timesplit: ")
    assert ended.stderr.count("\n") == 1
    assert told in ended.stderr


def wait_for_rows(lab: Lab) -> Path:
    latest = lab.folder / "runs" / "latest"
    before = latest.resolve()
    wait_for(
        lambda: latest.resolve() != before and any((latest / "client").glob("*.parquet")),
        60,
        lambda: "no rows",
    )
    return latest.resolve()


def counts(folder: Path) -> tuple[int, int, int]:
    """Return the rows of the client, those of the server, and those that were matched."""
    requests = pq.read_table(folder / "requests")
    matched = pc.sum(requests["matched"]).as_py()
    return pq.read_table(folder / "client").num_rows, pq.read_table(folder / "server").num_rows, matched


def slowest_ms(folder: Path, route: str) -> tuple[float, float]:
    """Return the longest response time and the longest server span of a route."""
    requests = pq.read_table(folder / "requests", filters=[("route", "=", route)])
    response, span = (pc.max(requests[column]).as_py() / 1e6 for column in ("response_ns", "span_ns"))
    return response, span
