from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.truth.served import ASYNCIO, GUNICORN_ASGI, UVLOOP, Service, name, serve


@pytest.fixture(scope="module", params=[UVLOOP, ASYNCIO, GUNICORN_ASGI], ids=name)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The plain routes, on each loop and server."""
    folder: Path = tmp_path_factory.mktemp("plain")
    with serve("tests.truth.plain_routes:app", request.param, folder) as service:
        yield service
