"""The agent as one of OpenTelemetry's instrumentations: for applications that are started with their launcher.

`opentelemetry-instrument` finds it by its entry point. It makes no spans: the application has its own, and finds the
parts of each request there.
"""

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # its types are off

from timesplit.instrumentation import agent, wants_ledger


class TimesplitInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # likewise
    """Arms the agent."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what must be installed: nothing, each hook looks for its library itself."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        if wants_ledger():
            agent.arm()

    def _uninstrument(self, **kwargs: Any) -> None:
        agent.disarm()
