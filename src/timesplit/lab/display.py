"""What is shown while a scenario runs: in a terminal one line that changes, elsewhere plain lines."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A line of the generator's progress file.

    Attributes:
        run: path of the run folder.
        elapsed: seconds since the test's start.
        stage: stage of the scenario.
        begun: attempts begun.
        answered: of these, ended with an answer.
        errors: of these, failed.
        rate: answers in the last second.
        p99_ms: 99th percentile of the response time so far, after the warm-up; None while there is none.
    """

    run: str
    elapsed: float
    stage: str
    begun: int
    answered: int
    errors: int
    rate: float
    p99_ms: float | None

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Progress":
        """Take what is known here from a line of the file."""
        return cls(**{name: line[name] for name in cls.__slots__})

    def text(self, duration: float | None) -> str:
        """Return it as people read it; `duration` is the run's, in seconds, where that is known."""
        p99 = "-" if self.p99_ms is None else f"{self.p99_ms:,.0f} ms"
        parts = [self.stage, f"{self.rate:,.0f}/s", f"p99 so far {p99}", f"{self.errors:,} errors"]
        if duration is None:
            parts.append(f"{self.elapsed:.0f} s")
        else:
            parts.append(f"{max(duration - self.elapsed, 0):.0f} s left")
        return " · ".join(part for part in parts if part)


class Display(AbstractContextManager["Display"]):
    """Shows steps and progress on standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(markup=False, highlight=False)
        # Refreshed by hand: its own thread would live beside forks.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._last_plain = float("-inf")
        self._last_stage = ""

    def say(self, step: str) -> None:
        """Show what the lab does now; the line that told the progress goes."""
        self._live.stop()
        self._console.print(f"{step} …", style="dim")

    def progress(self, progress: Progress, duration: float | None) -> None:
        """Show how the run goes."""
        text = progress.text(duration)
        if self._console.is_terminal:
            self._live.start()
            self._live.update(Text(text), refresh=True)
        elif progress.stage != self._last_stage or time.monotonic() - self._last_plain >= PLAIN_SECONDS:
            self._console.print(text)
            self._last_plain = time.monotonic()
            self._last_stage = progress.stage

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()
