"""Server spans of the application's own tracing: a request that has one gets no second one, but its parts there.

Whoever makes the span (an instrumentation, FastAPI itself, the application by hand), it is started with the
OpenTelemetry SDK, in a step of its request. OpenTelemetry is never imported here.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from timesplit.instrumentation.ledger import Segment
from timesplit.instrumentation.loop import current_request
from timesplit.parts import SERVER_PARTS

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent

# Values of the journal's field `foreign`.
NONE, UNSAMPLED, SAMPLED = range(3)
PART: Final = "timesplit.part."  # + name of the part: seconds
DOMINANT: Final = "timesplit.dominant"  # name of the part that took most
_NAMES: Final = tuple(PART + part.name for part in SERVER_PARTS)
_WORD: Final = (1 << 64) - 1
_KIND: Final = 3  # position of `kind` among the arguments of start_span, self included


def arm(agent: "Agent") -> None:
    """See the server spans that the SDK starts."""
    tracer: Any = sys.modules["opentelemetry.sdk.trace"].Tracer
    agent.hooks.replace("opentelemetry Tracer.start_span", tracer, "start_span", _noting)


def _noting(start_span: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        span = start_span(*args, **kwargs)
        kind = kwargs.get("kind") or (args[_KIND] if len(args) > _KIND else None)
        if kind is not None and getattr(kind, "name", "") == "SERVER":
            request = current_request()
            if request is not None and request.foreign is None:
                request.foreign = span
        return span

    return noted


def tell(span: Any, segments: Sequence[Segment]) -> None:
    """Set a request's parts on its server span, if that is still open.

    Args:
        span: the span.
        segments: the account up to now.
    """
    if not span.is_recording():
        return
    totals = [0] * len(SERVER_PARTS)
    for part, _, start, end in segments:
        totals[part] += end - start
    parts = {_NAMES[part]: ns / 1e9 for part, ns in enumerate(totals) if ns}
    if parts:
        most = max(range(len(totals)), key=totals.__getitem__)
        span.set_attributes({**parts, DOMINANT: SERVER_PARTS[most].name})


def ids(span: Any) -> tuple[int, int, int, int]:
    """Return the journal's fields of a server span: `foreign`, both halves of its trace id, its span id."""
    context = None if span is None else span.get_span_context()
    if context is None or not context.is_valid:
        return NONE, 0, 0, 0
    trace, state = context.trace_id, SAMPLED if context.trace_flags.sampled else UNSAMPLED
    return state, _signed(trace >> 64), _signed(trace & _WORD), _signed(context.span_id)


def _signed(word: int) -> int:
    """Return the signed number with the same 64 bits."""
    return word - (1 << 64) if word >> 63 else word
