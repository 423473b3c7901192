"""The scenarios of `loadtests/`, as plain Locust takes them."""

import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.generator_target import Generator, Run, Target, free_port, wait_for
from timesplit.schema import CLIENT

LOADTESTS = Path(__file__).parents[2] / "loadtests"
USERS = {
    "AfterResponseUser",
    "BackgroundJobsUser",
    "BurstUser",
    "CacheUser",
    "CpuUser",
    "DatabaseUser",
    "EventStreamUser",
    "JobsUser",
    "MixedUser",
    "UpstreamUser",
    "WaitingUser",
    "WebSocketUser",
}


@pytest.fixture
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


def test_locust_finds_every_class(tmp_path: Path) -> None:
    with Generator(tmp_path, LOADTESTS, "http://127.0.0.1:9", "--list") as locust:
        listed = locust.finish().output

    assert {line.strip() for line in listed.splitlines() if line.startswith("    ")} == USERS


def test_the_mix_runs_where_nobody_names_a_class(target: Target, tmp_path: Path) -> None:
    # Locust runs in another folder than the project's: the scenarios must not need that.
    headless = ("--headless", "-u", "5", "-r", "5", "-t", "2s", "--exit-code-on-error", "0")
    with Generator(tmp_path, LOADTESTS, target.url, *headless) as locust:
        run = locust.finish()

    assert (run.meta["scenario"], run.meta["user_classes"]) == ("loadtests", ["MixedUser"])
    assert "GET /cached-users/{user_id}" in {row["name"] for row in run.rows(CLIENT)}
    assert not [row["name"] for row in run.rows(CLIENT) if any(map(str.isdigit, row["name"]))]


@pytest.mark.parametrize(
    ("picked", "ran"),
    [
        (sorted(USERS), ["MixedUser"]),  # as the page has them ticked at first
        (["CpuUser", "WaitingUser"], ["CpuUser", "WaitingUser"]),
    ],
)
def test_the_page_offers_every_class_and_runs_what_is_picked(
    target: Target, tmp_path: Path, picked: list[str], ran: list[str]
) -> None:
    port = free_port()
    page = ("--class-picker", "--web-port", port)
    with Generator(tmp_path, LOADTESTS, target.url, *page) as locust:
        assert all(name in post_or_get(f"http://127.0.0.1:{port}/") for name in USERS)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", int(port)))  # nobody asked for more than 127.0.0.1
        form = [("user_count", "4"), ("spawn_rate", "4"), *(("user_classes", name) for name in picked)]
        post_or_get(f"http://127.0.0.1:{port}/swarm", form)
        wait_for(lambda: bool(target.seen))
        post_or_get(f"http://127.0.0.1:{port}/stop", [])
        run = Run(locust.runs / "latest")

    assert run.meta["user_classes"] == ran
    assert run.meta["ended"]


def post_or_get(url: str, form: list[tuple[str, str]] | None = None) -> str:
    data = None if form is None else urllib.parse.urlencode(form).encode()
    for _ in range(200):
        try:
            with urllib.request.urlopen(url, data, timeout=10) as answer:
                return str(answer.read(), "utf-8")
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)
