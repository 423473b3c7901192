"""The tracing of a worker process: started after the fork, stopped at its end, and what the process says of itself."""

import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import metadata

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.util.types import AnyValue

from timesplit import spanfacts
from timesplit.clocks import boot_id, read_anchor
from timesplit.instrumentation import identity
from timesplit.tracing.libraries import armed_libraries
from timesplit.tracing.spans import WorkerSpans

log = logging.getLogger(__name__)

_PACKAGES = ("timesplit", "fastapi", "starlette", "uvicorn", "gunicorn", "opentelemetry-sdk")


class ProcessTracing:
    """What all applications of a process share.

    Attributes:
        provider: makes the spans; good before the fork too, for it has neither thread nor connection.
    """

    def __init__(self) -> None:
        self._spans = WorkerSpans()
        self._libraries = ExitStack()
        self._applications = 0
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(self._spans)

    def start(self) -> None:
        """Arm the libraries and export, unless another application of this process has begun that already."""
        self._applications += 1
        if self._applications == 1:
            armed = self._libraries.enter_context(armed_libraries(self.provider))
            self._spans.start(worker_resource(armed))

    def stop(self) -> None:
        """Export what is left and disarm, once all applications of this process have stopped."""
        self._applications -= 1
        if not self._applications:
            self._spans.stop()
            try:
                self._libraries.close()
            except Exception as error:  # whatever an instrumentation does, the service ends in order
                log.warning("a library stays instrumented: %s", error)


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
