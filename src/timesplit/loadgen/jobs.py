"""The user that asks for work to be done later, and looks after it until it is done or lost."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from time import monotonic, monotonic_ns
from typing import Any, ClassVar, Literal

import gevent
import locust

from timesplit.loadgen.users import FastHttpUser
from timesplit.schema import JOBS

_ENDED = ("finished", "dead")


@dataclass
class Job:
    """A piece of work that the service has accepted; the attributes are the columns of `jobs/`."""

    job_id: str
    kind: str
    stage: str
    posted: int
    seen_finished: int | None = None
    state: str = "unknown"
    effects: int | None = None
    attempts: int | None = None

    def see(self, seen: dict[str, Any]) -> bool:
        """Take what the service says of it, and tell whether that is new."""
        before = self.state, self.attempts
        self.state, self.effects, self.attempts = seen["state"], seen["effects"], seen["attempts"]
        if self.state == "finished" and self.seen_finished is None:
            self.seen_finished = monotonic_ns()
        return before != (self.state, self.attempts)


class JobUser(FastHttpUser):
    """One user who posts jobs at a steady pace, watches them until all have ended, and ends the run.

    The service answers a post with 202 and `job_id`, and a GET of `/jobs` with the states of the newest jobs.

    Attributes:
        kind: `queue` or `background`.
        path: where jobs are posted.
        count: how many.
        seconds: how long each takes.
        patience: seconds without any change after which the jobs that are still open are given up.
        look_every: seconds between two looks at the states.
    """

    abstract = True
    fixed_count = 1
    wait_time = locust.constant_pacing(0.05)
    kind: ClassVar[Literal["queue", "background"]] = "queue"
    path: ClassVar[str] = "/jobs"
    count: ClassVar[int] = 200
    seconds: ClassVar[float] = 0.25
    patience: ClassVar[float] = 30
    look_every: ClassVar[float] = 0.25

    @locust.task
    def work(self) -> None:
        """Post all jobs and look after them."""
        posted: list[Job] = []
        try:
            for _ in range(self.count):
                posted += self.post({"seconds": self.seconds})
                self.wait()  # type: ignore[no-untyped-call]  # Locust types it not
            self.watch(posted)
        finally:
            self.record(posted)
        self.afterwards()
        self.finish()

    def afterwards(self) -> None:
        """Do what else belongs to the scenario; nothing by default."""

    def post(self, body: dict[str, Any]) -> list[Job]:
        """Post a job, and return it in a list: an empty one where the service did not accept it."""
        answer = self.client.post(self.path, json=body)
        if answer.status_code != 202:
            return []
        stage = self.recorder.tally.stage if self.recorder else ""
        return [Job(answer.json()["job_id"], self.kind, stage, monotonic_ns())]

    def watch(self, jobs: Iterable[Job]) -> None:
        """Look at jobs until all have ended, or nothing has changed for a while."""
        open_jobs = {job.job_id: job for job in jobs}
        until = monotonic() + self.patience
        while open_jobs and monotonic() < until:
            if self._look(open_jobs):
                until = monotonic() + self.patience
            open_jobs = {job.job_id: job for job in open_jobs.values() if job.state not in _ENDED}
            gevent.sleep(self.look_every)

    def record(self, jobs: Iterable[Job]) -> None:
        """Make rows of `jobs/` of them."""
        for job in jobs:
            if self.recorder is not None:
                self.recorder.add(JOBS, asdict(job))

    def _look(self, jobs: dict[str, Job]) -> bool:
        answer = self.client.get(f"/jobs?kind={self.kind}&limit=1000", name="/jobs")
        seen = answer.json() if answer.status_code == 200 else []
        changes = [jobs[row["job_id"]].see(row) for row in seen if row["job_id"] in jobs]
        return any(changes)
