import pytest
from opentelemetry.sdk.trace import Event
from opentelemetry.trace import Status, StatusCode

from timesplit.tracing.discretion import discreet_attributes, discreet_events, discreet_status

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("url.full", f"http://up/users?token={SECRET}", "http://up/users"),
        ("http.url", f"http://up/users?token={SECRET}", "http://up/users"),
        ("http.target", f"/users?token={SECRET}", "/users"),
        (
            "db.query.text",
            f"SELECT * FROM t WHERE a = '{SECRET}' AND b = 'it''s {SECRET}' AND c = $1",
            "SELECT * FROM t WHERE a = ? AND b = ? AND c = $1",
        ),
        ("db.statement", f"SELECT '{SECRET}'", "SELECT ?"),
    ],
)
def test_what_carries_values_is_told_without_them(name: str, value: str, told: str) -> None:
    assert discreet_attributes({name: value, "other": 1}) == {name: told, "other": 1}


@pytest.mark.parametrize("name", ["url.query", "user_agent.original", "http.user_agent"])
def test_query_strings_and_headers_are_not_told(name: str) -> None:
    assert discreet_attributes({name: SECRET}) == {}


def test_an_exception_is_told_by_its_type_and_its_lines_of_code() -> None:
    stack = f'Traceback:\n  File "a.py", line 3, in route\n    go("{SECRET}")\nError: {SECRET}\n'
    event = Event(
        "exception",
        {"exception.type": "Error", "exception.message": SECRET, "exception.stacktrace": stack},
        timestamp=7,
    )

    (told,) = discreet_events([event])

    assert told.attributes == {
        "exception.type": "Error",
        "exception.stacktrace": '  File "a.py", line 3, in route',
    }
    assert told.timestamp == 7


def test_other_events_stay_as_they_are() -> None:
    event = Event("cache miss", {"key": 1})

    assert list(discreet_events([event])) == [event]


def test_a_status_keeps_its_code_only() -> None:
    status = discreet_status(Status(StatusCode.ERROR, f"Error: {SECRET}"))

    assert (status.status_code, status.description) == (StatusCode.ERROR, None)
