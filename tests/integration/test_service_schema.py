import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import hypothesis
import pytest
import schemathesis

from service.app import create_app
from service.settings import Settings
from timesplit.lab.forwarding import answers
from timesplit.lab.processes import Processes, free_port

# Waits that a request may ask for: their bound, and what they are cut down to.
SCHEMES = {"database_url": "postgresql", "cache_url": "redis", "upstream_url": "http"}
WAITS = {"delay": (5, 0.01), "seconds": (5, 0.01), "interval": (5, 0.01), "milliseconds": (1000, 1)}


@pytest.fixture(scope="module")
def service(processes: Processes, service_environment: dict[str, str]) -> Iterator[str]:
    """URL of the service under gunicorn."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--bind", address]
    child = processes.start("service", [*command, "service.app:create_app()"], env=service_environment)
    child.wait_ready(lambda: answers(f"http://{address}/readyz"))
    yield f"http://{address}"
    processes.stop(child)
    assert "Traceback" not in child.output()


def openapi() -> dict[str, Any]:
    nowhere = {name: f"{scheme}://none/none" for name, scheme in SCHEMES.items()}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TIMESPLIT_TRACES", "off")
        return create_app(Settings.model_validate(nowhere)).openapi()


schema = schemathesis.openapi.from_dict(openapi())


@schema.parametrize()
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
def test_no_request_makes_the_service_fail(case: "schemathesis.Case[Any]", service: str) -> None:
    for part in (case.query, case.body):
        shorten(part)
    # Starlette tells the methods of one route, not of all that share a path.
    case.call_and_validate(base_url=service, excluded_checks=[schemathesis.checks.allow_header_conformance])


def shorten(part: Any) -> None:
    """Cut waits down where they are within their bounds; what is wrong stays wrong."""
    if isinstance(part, dict):
        for name, (bound, short) in WAITS.items():
            with suppress(KeyError, TypeError, ValueError):
                if short < float(part[name]) <= bound:
                    part[name] = type(part[name])(short)
