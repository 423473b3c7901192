"""Locust without its monkey-patching, which the tests' own process would not survive. Import this first."""

import os

os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"
import locust

del os.environ["LOCUST_SKIP_MONKEY_PATCH"]  # processes that tests start are to be patched

__all__ = ["locust"]
