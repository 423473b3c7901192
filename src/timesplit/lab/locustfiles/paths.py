"""The locustfile of `timesplit run --path …`. In a folder of its own: Locust makes that folder importable."""

import json
import os

from locust import task

from timesplit.loadgen import FastHttpUser

_PATHS = json.loads(os.environ["TIMESPLIT_PATHS"])


class PathUser(FastHttpUser):
    """Requests the paths in turn, without think time."""

    @task
    def request_each(self) -> None:
        """Request each path once."""
        for path in _PATHS:
            self.client.get(path)
