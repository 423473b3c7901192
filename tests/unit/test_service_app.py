import asyncio
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import HttpUrl, PostgresDsn, RedisDsn

from service.app import create_app
from service.settings import Settings
from service.shutdown import pause, stopping_event

DOCUMENT = Path(__file__).parents[2] / "docs" / "service.md"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setenv("TIMESPLIT_TRACES", "off")
    return create_app(
        Settings(
            database_url=PostgresDsn("postgresql://nobody@127.0.0.1:1/nothing"),
            cache_url=RedisDsn("redis://127.0.0.1:1/0"),
            upstream_url=HttpUrl("http://127.0.0.1:1"),
        )
    )


def operations(app: FastAPI) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each operation of the OpenAPI document, as `GET /path`."""
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_document_lists_the_routes_that_there_are(app: FastAPI) -> None:
    listed = re.findall(r"^\| `([A-Z]+ /[^`]*)`", DOCUMENT.read_text(), re.MULTILINE)

    assert sorted(listed) == sorted([*(name for name, _ in operations(app)), "WS /stream/echo"])


def test_a_mistake_is_named_as_one_everywhere(app: FastAPI) -> None:
    by_document = set(
        re.findall(r"^\| `([A-Z]+ /[^`]*)` \| \*\*mistake:\*\*", DOCUMENT.read_text(), re.MULTILINE)
    )
    by_tag = {name for name, operation in operations(app) if "mistake" in operation["tags"]}
    by_summary = {name for name, operation in operations(app) if operation["summary"].startswith("MISTAKE: ")}
    by_function = {
        name for name, operation in operations(app) if operation["operationId"].startswith("mistake_")
    }

    assert by_document == by_tag == by_summary == by_function
    assert "GET /blocking-in-async" in by_tag


def test_routes_say_what_they_show(app: FastAPI) -> None:
    assert [name for name, operation in operations(app) if not operation.get("description")] == []


async def test_a_stop_is_known_before_the_server_handles_it() -> None:
    handled: list[int] = []

    def server(number: int, _: object) -> None:
        handled.append(number)

    original = signal.signal(signal.SIGTERM, server)
    try:
        with stopping_event() as stopping:
            signal.raise_signal(signal.SIGTERM)
            await pause(stopping, 60)

            assert stopping.is_set()
            assert handled == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is server
    finally:
        signal.signal(signal.SIGTERM, original)


async def test_a_pause_ends_by_itself() -> None:
    event = asyncio.Event()

    await pause(event, 0.001)

    assert not event.is_set()
