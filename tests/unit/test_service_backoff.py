from datetime import UTC, datetime

import pytest
from procrastinate.jobs import Job

from service.jobs import Backoff, JobDead, JobFailed


def job(attempts: int) -> Job:
    return Job(queue="default", lock=None, queueing_lock=None, task_name="run_job", attempts=attempts)


def pause(backoff: Backoff, attempts: int) -> float:
    decision = backoff.get_retry_decision(exception=JobFailed(), job=job(attempts))
    assert decision is not None
    assert decision.retry_at is not None
    return (decision.retry_at - datetime.now(UTC)).total_seconds()


def test_the_pause_before_a_retry_doubles_each_time() -> None:
    backoff = Backoff(10)

    assert [pause(backoff, attempts) for attempts in range(4)] == pytest.approx([10, 20, 40, 80], abs=1)


def test_a_dead_job_is_not_retried() -> None:
    assert Backoff(10).get_retry_decision(exception=JobDead(), job=job(3)) is None
