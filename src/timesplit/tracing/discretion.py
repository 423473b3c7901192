"""What a span must not tell: query strings, headers, values in SQL, texts of exceptions."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import Event
from opentelemetry.trace import Status

_QUOTED = re.compile(r"'(?:[^']|'')*'")
_FRAME = '  File "'


def discreet_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes without what must not be told."""
    told = {name: value for name, value in attributes.items() if name not in _LEFT_OUT}
    for name in _SHORTENED.keys() & told.keys():
        told[name] = _SHORTENED[name](str(told[name]))
    return told


def discreet_events(events: Sequence[Event]) -> Sequence[Event]:
    """Return the events; of exceptions only the type and the lines of code, because messages carry values."""
    return [_without_message(event) if event.name == "exception" else event for event in events]


def discreet_status(status: Status) -> Status:
    """Return the status without its description: there it is the exception's message again."""
    return Status(status.status_code) if status.description else status


def _without_message(event: Event) -> Event:
    told = dict(event.attributes or {})
    told.pop("exception.message", None)
    trace = str(told.get("exception.stacktrace", ""))
    told["exception.stacktrace"] = "\n".join(line for line in trace.splitlines() if line.startswith(_FRAME))
    return Event(event.name, told, event.timestamp)


def _without_query(url: str) -> str:
    return url.partition("?")[0]


def _without_values(statement: str) -> str:
    return _QUOTED.sub("?", statement)


_LEFT_OUT = frozenset({"url.query", "user_agent.original", "http.user_agent"})
_SHORTENED: Mapping[str, Callable[[str], str]] = {
    "url.full": _without_query,
    "http.url": _without_query,
    "http.target": _without_query,
    "db.query.text": _without_values,
    "db.statement": _without_values,
}
