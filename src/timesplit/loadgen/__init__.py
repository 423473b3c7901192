"""What runs inside Locust: users whose every request is recorded.

A locustfile takes its user class from here and is ordinary otherwise. A run is then a folder below
`TIMESPLIT_RUNS` (default `./runs`), with `locust` alone as well as under `timesplit run`.
"""

from timesplit.loadgen.bursts import BurstUser
from timesplit.loadgen.jobs import JobUser
from timesplit.loadgen.users import FastHttpUser

__all__ = ["BurstUser", "FastHttpUser", "JobUser"]
