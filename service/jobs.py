"""Jobs: work that outlives its request.

A job is a row of `jobs`: clients look at that, and it alone says what became of the work. The job queue
(procrastinate, in the same database) only brings the row's id to a job worker. Its message is written in the
transaction that writes the row, so neither exists without the other.

A job may run more than once: its worker can be killed at any moment, also between the effect and the word of
it. The effect takes place in the transaction that marks the job as finished, under a unique key, so it takes
place once.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import procrastinate
from procrastinate.jobs import Job as QueuedJob
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from service.database import plain_url
from service.models import Job, JobEffect, JobKind, JobState
from service.settings import Settings

_TASK = "run_job"


class JobFailed(Exception):
    """An attempt failed, and another one may succeed."""


class JobDead(Exception):
    """The last attempt failed: the job is a dead letter now."""


class Backoff(procrastinate.BaseRetryStrategy):
    """Run a failed job again after a pause that doubles each time, unless it is dead."""

    def __init__(self, first_delay: float) -> None:
        self._first_delay = first_delay

    def get_retry_decision(
        self, *, exception: BaseException, job: QueuedJob
    ) -> procrastinate.RetryDecision | None:
        """Decide after an exception; `job.attempts` counts the attempts before this one."""
        if isinstance(exception, JobDead):
            return None
        pause = timedelta(seconds=self._first_delay * 2**job.attempts)
        return procrastinate.RetryDecision(retry_at=datetime.now(UTC) + pause)


def job_queue(settings: Settings, sessions: async_sessionmaker[AsyncSession]) -> procrastinate.App:
    """Make the job queue: opened, it runs jobs; unopened, it can still take them in (see `enqueue`)."""
    queue = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=plain_url(settings)))

    @queue.task(name=_TASK, retry=Backoff(settings.job_retry_delay))
    async def run_job(job_id: str) -> None:
        await attempt(sessions, UUID(job_id), settings.job_max_attempts)

    return queue


async def enqueue(queue: procrastinate.App, session: AsyncSession, job: Job) -> None:
    """Write a new job and its message; both exist when the session's transaction is committed.

    Args:
        queue: the job queue.
        session: a session of `service.database.job_engine`, in a transaction.
        job: the job, not yet in the database.
    """
    session.add(job)
    await session.flush()
    await _defer(queue, session, job.id)


async def requeue(queue: procrastinate.App, session: AsyncSession, job_id: UUID) -> bool:
    """Give a dead letter all its attempts again, in the session's transaction; False where it is none."""
    revived = (
        update(Job)
        .where(Job.id == job_id, Job.kind == JobKind.QUEUE, Job.state == JobState.DEAD)
        .values(state=JobState.QUEUED, attempts=0)
        .returning(Job.id)
    )
    if await session.scalar(revived) is None:
        return False
    await _defer(queue, session, job_id)
    return True


async def _defer(queue: procrastinate.App, session: AsyncSession, job_id: UUID) -> None:
    connection = await (await session.connection()).get_raw_connection()
    await queue.configure_task(_TASK, connection=connection.driver_connection).defer_async(job_id=str(job_id))


async def attempt(sessions: async_sessionmaker[AsyncSession], job_id: UUID, max_attempts: int) -> None:
    """Run a job once, unless it is finished or dead already.

    Raises:
        JobFailed: it failed and is queued again.
        JobDead: it failed for the last time.
    """
    job = await _begin(sessions, job_id)
    if job is None:
        return
    if job.attempts > max_attempts:
        # Its earlier attempts ended with their workers: perhaps it is what kills them.
        await _set_state(sessions, job_id, JobState.DEAD)
        raise JobDead(f"job {job_id} was cut short {max_attempts} times")
    try:
        await _work(job)
    except JobFailed as failure:
        if job.attempts < max_attempts:
            await _set_state(sessions, job_id, JobState.QUEUED)
            raise
        await _set_state(sessions, job_id, JobState.DEAD)
        raise JobDead(str(failure)) from failure
    await _finish(sessions, job_id)


async def _begin(sessions: async_sessionmaker[AsyncSession], job_id: UUID) -> Job | None:
    begun = (
        update(Job)
        .where(Job.id == job_id, Job.state.in_([JobState.QUEUED, JobState.RUNNING]))
        .values(state=JobState.RUNNING, attempts=Job.attempts + 1)
        .returning(Job)
    )
    async with sessions.begin() as session:
        return await session.scalar(begun)


async def _work(job: Job) -> None:
    await asyncio.sleep(job.seconds)
    if job.poison:
        raise JobFailed(f"job {job.id} is poisoned")


async def _finish(sessions: async_sessionmaker[AsyncSession], job_id: UUID) -> None:
    first = insert(JobEffect).values(job_id=job_id).on_conflict_do_nothing().returning(JobEffect.job_id)
    effect = update(Job).where(Job.id == job_id).values(state=JobState.FINISHED, effects=Job.effects + 1)
    async with sessions.begin() as session:
        # Where another run of the same job is at this point, the insert waits for its end.
        if await session.scalar(first) is not None:
            await session.execute(effect)


async def _set_state(sessions: async_sessionmaker[AsyncSession], job_id: UUID, state: JobState) -> None:
    # A job that two workers ran at once may be finished by now, and stays so.
    change = update(Job).where(Job.id == job_id, Job.state == JobState.RUNNING).values(state=state)
    async with sessions.begin() as session:
        await session.execute(change)
