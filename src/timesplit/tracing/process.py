"""What a worker process says about itself: the resource of its spans."""

import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata

from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import AnyValue

from timesplit import spanfacts
from timesplit.clocks import boot_id, read_anchor
from timesplit.instrumentation import identity

_PACKAGES = ("timesplit", "fastapi", "starlette", "uvicorn", "gunicorn", "opentelemetry-sdk")


def worker_resource(armed: frozenset[str]) -> Resource:
    """Describe this process: who it is, how its clocks stand, what it records.

    What the environment says (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`) is kept, but for the instance:
    one that is set there would be the same in all workers.

    Args:
        armed: kinds of calls whose spans are made.
    """
    anchor = read_anchor()
    ours: dict[str, AnyValue] = {
        "service.instance.id": identity.share(),
        "process.pid": os.getpid(),
        spanfacts.ANCHOR_MONOTONIC: anchor.monotonic,
        spanfacts.ANCHOR_UTC: anchor.utc,
        spanfacts.BOOT_ID: boot_id(),
        spanfacts.ARMED: sorted(armed),
        spanfacts.VERSIONS: json.dumps(dict(_versions())),
    }
    return Resource({"host.name": platform.node()}).merge(Resource.create(ours))


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
