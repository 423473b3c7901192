"""Jobs on a queue: posted while the job worker is killed and started again. None may be lost, none done twice."""

from timesplit import loadgen


class JobsUser(loadgen.JobUser):
    """Posts 200 jobs and watches them to their end; then one that always fails, twice."""

    by_name = True
    stages = ("main", "dead-letter")
    kind = "queue"
    path = "/jobs"
    count = 200
    patience = 30

    def afterwards(self) -> None:
        """Post a job that fails at each attempt; put it back from the dead letters; it must die again."""
        self.enter("dead-letter")
        poisoned = self.post({"seconds": 0, "poison": True})
        try:
            self.watch(poisoned)
            for job in poisoned:
                self.client.get("/dead-letters")
                self.client.post(f"/dead-letters/{job.job_id}/requeue", name="/dead-letters/{job_id}/requeue")
                job.state = "queued"
            self.watch(poisoned)
        finally:
            self.record(poisoned)
