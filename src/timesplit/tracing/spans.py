"""The worker's finished spans: numbered, completed, made discreet, and exported."""

import itertools
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from timesplit import spanfacts
from timesplit.tracing.discretion import discreet_attributes, discreet_events, discreet_status
from timesplit.tracing.exchange import Exchange, current_exchange

log = logging.getLogger(__name__)

# About 8 s of 1,000 requests a second with 4 spans each, in at most some 150 MB; beyond it the oldest are
# dropped, and their numbers are missing. `OTEL_BSP_MAX_QUEUE_SIZE` and `OTEL_BSP_SCHEDULE_DELAY` come first.
QUEUE_SPANS: Final = 32_768
EXPORT_MILLISECONDS: Final = 1_000
STOP_SECONDS: Final = 5.0  # to hand over the rest at the end, before the lab or gunicorn loses patience


class WorkerSpans(SpanProcessor):
    """Exports the process's spans from `start` to `stop`; at other times it forgets them."""

    def __init__(self) -> None:
        self._batch: BatchSpanProcessor | None = None
        self._failed = False

    def start(self, resource: Resource) -> None:
        """Begin to number and export.

        Args:
            resource: the process, as it is after the fork.
        """
        self._resource = resource
        self._numbers = itertools.count()
        self._exporter = OTLPSpanExporter()
        self._batch = BatchSpanProcessor(
            self._exporter,
            max_queue_size=None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else QUEUE_SPANS,
            schedule_delay_millis=None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else EXPORT_MILLISECONDS,
        )

    def stop(self) -> None:
        """Say how many server spans were made, and export what is left: for `STOP_SECONDS` at most."""
        batch, self._batch = self._batch, None
        if batch is None:
            return  # it could not start
        batch.on_end(self._last_span())
        # A thread that can be left alone: the SDK waits 30 s for a collector that does not answer.
        stopping = threading.Thread(target=batch.shutdown, name="timesplit-stop", daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS)
        if stopping.is_alive():
            log.warning("the last spans could not be exported within %g s", STOP_SECONDS)
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK has no types here

    def on_end(self, span: ReadableSpan) -> None:
        """Take a finished span. Whatever goes wrong, the request that ends it goes on."""
        try:
            if self._batch and span.context and span.context.trace_flags.sampled:
                self._batch.on_end(self._completed(span))
        except Exception:
            if not self._failed:
                log.warning("a span is lost, and maybe others", exc_info=True)
            self._failed = True

    def _completed(self, span: ReadableSpan) -> ReadableSpan:
        attributes = discreet_attributes(span.attributes or {})
        if span.kind is SpanKind.SERVER:
            # Numbered at its end, so that a missing number is a span that was lost, not one still open.
            attributes[spanfacts.SEQ] = next(self._numbers)
            if exchange := current_exchange():
                attributes.update(_facts(exchange, span))
        return ReadableSpan(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=self._resource,
            attributes=attributes,
            events=discreet_events(span.events),
            links=span.links,
            kind=span.kind,
            status=discreet_status(span.status),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _last_span(self) -> ReadableSpan:
        # Made by hand, not by a tracer: a sampler must not drop it.
        ids, now = RandomIdGenerator(), time.time_ns()
        return ReadableSpan(
            name=spanfacts.WORKER_END,
            context=SpanContext(ids.generate_trace_id(), ids.generate_span_id(), False, TraceFlags(1)),
            resource=self._resource,
            attributes={spanfacts.SPANS_MADE: next(self._numbers)},
            start_time=now,
            end_time=now,
        )


def _facts(exchange: Exchange, span: ReadableSpan) -> Mapping[str, Any]:
    facts = {
        spanfacts.ENDED_BY: _ended_by(exchange, span),
        spanfacts.STREAM: exchange.stream,
        spanfacts.FIRST: exchange.first,
        spanfacts.MESSAGES: exchange.messages if exchange.stream else None,
        spanfacts.CODE: exchange.code,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _ended_by(exchange: Exchange, span: ReadableSpan) -> str:
    raised = exchange.raised or any(event.name == "exception" for event in span.events) or _is_failed(span)
    # One that a handler turned into an answer is the application's business.
    if raised and (not exchange.complete or _status(span) >= 500):
        return "exception" if exchange.code is None else "disconnect"
    return "response" if exchange.complete else "disconnect"


def _is_failed(span: ReadableSpan) -> bool:
    """Tell whether FastAPI's own telemetry names an exception: it records no event of it."""
    error = (span.attributes or {}).get("error.type")
    return _status(span) >= 500 and isinstance(error, str) and not error.isdigit()


def _status(span: ReadableSpan) -> int:
    attributes = span.attributes or {}
    status = attributes.get("http.response.status_code", attributes.get("http.status_code"))
    return status if isinstance(status, int) else 0
