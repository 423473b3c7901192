"""What imports OpenTelemetry inside the worker, the only place there: loaded where it is wanted, and only then.

`application` makes the spans of mode `otel`; `instrumentor` is for applications that make their own.
"""
