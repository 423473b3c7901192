"""What the generator makes of what it reads: events, failures, commands."""

from itertools import pairwise

import gevent
import pytest
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError
from hypothesis import given
from hypothesis import strategies as st

import tests.unpatched_locust  # noqa: F401 - before all that imports Locust
from timesplit.errors import UsageError
from timesplit.loadgen.attempt import error_of
from timesplit.loadgen.meta import warmup_s, without_credentials, without_secrets
from timesplit.loadgen.streams import EventParser
from timesplit.loadgen.users import request_name

EVENTS = b": ping\n\ndata: one\n\nevent: x\r\nid: 1\r\ndata:two\r\ndata:  lines\r\n\r\n\n\n"
EVENTS += b"data\n\nid: 2\n\ndata: unfinished"


@given(st.lists(st.integers(0, len(EVENTS))))
def test_events_are_the_same_however_their_bytes_come(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(EVENTS)]
    parser = EventParser()
    pieces = [EVENTS[start:end] for start, end in pairwise(edges)]

    assert [event for piece in pieces for event in parser.feed(piece)] == ["one", "two\n lines", ""]


@pytest.mark.parametrize(
    ("failure", "at_end", "word"),
    [
        (TimeoutError(), False, "timeout"),
        (gevent.Timeout(1), False, "timeout"),
        (ConnectionRefusedError(), False, "refused"),
        (ConnectionResetError(), False, "reset"),
        (BrokenPipeError(), False, "reset"),
        (HTTPConnectionClosed(), False, "reset"),
        (HTTPParseError(), True, "reset"),
        (HTTPParseError(), False, "other"),
        (gevent.GreenletExit(), False, "unfinished"),
        (OSError("no route"), False, "other"),
        (ValueError(), False, "other"),
    ],
)
def test_a_failure_has_one_word(failure: BaseException, at_end: bool, word: str) -> None:
    assert error_of(failure, at_end=at_end) == word


def test_a_command_is_told_without_its_secrets() -> None:
    command = ["locust", "--api-key", "abc", "--my-Token=abc", "-f", "x.py", "--password", "--host"]
    command += ["https://me:abc@service:81/path?key=abc"]

    shown = without_secrets(command)

    assert "abc" not in " ".join(shown)
    assert shown[-1] == "https://service:81/path"
    assert [shown[0], *shown[4:6]] == ["locust", "-f", "x.py"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://[::1]:81/a", ""])
def test_a_url_without_credentials_stays_as_it_is(url: str) -> None:
    assert without_credentials(url) == url


def test_a_name_has_its_method_once() -> None:
    assert request_name("GET", "/users/{id}") == request_name("GET", "GET /users/{id}") == "GET /users/{id}"


def test_the_warm_up_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIMESPLIT_WARMUP", raising=False)
    assert (warmup_s("closed"), warmup_s("bursts")) == (5, 0)
    monkeypatch.setenv("TIMESPLIT_WARMUP", "2.5")
    assert warmup_s("bursts") == 2.5
    monkeypatch.setenv("TIMESPLIT_WARMUP", "soon")
    with pytest.raises(UsageError, match="TIMESPLIT_WARMUP=soon"):
        warmup_s("closed")
