"""Mode `otel`: the worker makes its own spans, with the OpenTelemetry SDK and its instrumentations.

The only place inside the worker that imports OpenTelemetry; loaded in this mode alone.
"""

from timesplit.tracing.application import instrument

__all__ = ["instrument"]
