"""The article's test: 20 and 100 requests at one instant, on the four waiting routes."""

from typing import ClassVar

from timesplit import loadgen


class BurstUser(loadgen.BurstUser):
    """Makes ten bursts of each size on each route, the routes taking turns. It ends the run by itself.

    Each request has its message made and its connection open before the instant: a burst measures requests,
    not handshakes.
    """

    by_name = True
    paths = ("/async-sleep", "/blocking-in-async", "/sync-blocking", "/offloaded-blocking")
    sizes: ClassVar[dict[str, int]] = {"burst-20": 20, "burst-100": 100}
    rounds = 10
