"""timesplit: where each request's time goes, and how much load a FastAPI service can take."""

from timesplit.instrumentation import instrument, uninstrument

__all__ = ["instrument", "uninstrument"]
