"""The upstream service: a second, small service whose latency and failures can be set."""
