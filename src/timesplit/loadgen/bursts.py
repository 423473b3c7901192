"""The user that makes bursts: many requests that are due at one instant."""

from typing import Any, ClassVar

import gevent
import locust

from timesplit.loadgen.attempt import Burst
from timesplit.loadgen.users import FastHttpUser


class BurstUser(FastHttpUser):
    """One user who makes bursts on each of its paths, one after the other, and then ends the run.

    A stage is a size. In a stage the paths take turns, so that a slow spell of the machine hits them alike.

    Attributes:
        paths: what is requested.
        sizes: how many requests make a burst, by stage.
        rounds: bursts of each size on each path.
        quiet: seconds without any request before each burst.
    """

    abstract = True
    model = "bursts"
    fixed_count = 1
    paths: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[dict[str, int]] = {}
    rounds: ClassVar[int] = 10
    quiet: ClassVar[float] = 0.1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.stages = tuple(cls.sizes)
        # Locust's ten connections would turn a burst of 100 into ten waves.
        cls.concurrency = max(cls.sizes.values(), default=1)

    @locust.task
    def make_bursts(self) -> None:
        """Make all bursts of all stages."""
        for stage, size in self.sizes.items():
            self.enter(stage)
            for number in range(self.rounds):
                for path in self.paths:
                    gevent.sleep(self.quiet)
                    self._burst(path, size, number)
        self.finish()

    def _burst(self, path: str, size: int, number: int) -> None:
        burst = Burst(number)
        members = [gevent.spawn(self.client.request, "GET", path, burst=burst) for _ in range(size)]
        try:
            # A member that cannot connect is done before it is ready.
            while burst.ready + sum(member.ready() for member in members) < size:
                gevent.sleep(0.001)
            burst.begin()
            gevent.joinall(members)
        finally:
            gevent.killall(members)  # Locust kills this greenlet only
