"""Jobs on a queue, and the same work as background tasks."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Query, Response, status
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from service.dependencies import DatabaseSession, JobSession, Sessions, Shared
from service.jobs import JobDead, attempt, enqueue, requeue
from service.models import Job, JobKind, JobState
from service.routes import BAD_BODY
from service.schemas import JobTaken, JobView, NewJob, Problem

router = APIRouter(tags=["jobs"])
logger = logging.getLogger(__name__)
NO_JOB: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "no such job"}}
_DEFAULT_JOB = NewJob()
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
Limit = Annotated[int, Query(ge=1, le=1000)]


def _new(kind: JobKind, new: NewJob) -> Job:
    return Job(kind=kind, seconds=new.seconds, poison=new.poison)


@router.post(
    "/jobs",
    summary="Put a job on the queue: it survives the worker that runs it",
    status_code=status.HTTP_202_ACCEPTED,
    responses=BAD_BODY,
)
async def post_job(
    session: JobSession, resources: Shared, response: Response, new: NewJob = _DEFAULT_JOB
) -> JobTaken:
    """Write the job and its message in one transaction, and answer with its id."""
    job = _new(JobKind.QUEUE, new)
    async with session.begin():
        await enqueue(resources.job_queue, session, job)
    response.headers["Location"] = f"/jobs/{job.id}"
    return JobTaken(job_id=job.id)


@router.post(
    "/background-jobs",
    summary="The same work as a background task: it dies with this worker",
    status_code=status.HTTP_202_ACCEPTED,
    responses=BAD_BODY,
)
async def post_background_job(
    background: BackgroundTasks,
    session: DatabaseSession,
    sessions: Sessions,
    response: Response,
    new: NewJob = _DEFAULT_JOB,
) -> JobTaken:
    """Write the job and do its work after the response; nobody tries again."""
    job = _new(JobKind.BACKGROUND, new)
    session.add(job)
    await session.commit()
    background.add_task(_run_once, sessions, job.id)
    response.headers["Location"] = f"/jobs/{job.id}"
    return JobTaken(job_id=job.id)


async def _run_once(sessions: async_sessionmaker[AsyncSession], job_id: UUID) -> None:
    try:
        await attempt(sessions, job_id, max_attempts=1)
    except JobDead as error:
        logger.warning("background task failed: %s", error)


@router.get("/jobs", summary="The newest jobs")
async def list_jobs(
    session: DatabaseSession,
    kind: JobKind | None = None,
    state: JobState | None = None,
    limit: Limit = 100,
) -> list[JobView]:
    """List jobs, newest first."""
    newest = select(Job).order_by(Job.created_at.desc()).limit(limit)
    if kind is not None:
        newest = newest.where(Job.kind == kind)
    if state is not None:
        newest = newest.where(Job.state == state)
    return [JobView.of(job) for job in await session.scalars(newest)]


@router.get("/jobs/{job_id}", summary="How far a job is", responses=NO_JOB)
async def read_job(job_id: UUID, session: DatabaseSession) -> JobView:
    """Read one job."""
    job = await session.get(Job, job_id)
    if job is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such job")
    return JobView.of(job)


@router.get(
    "/jobs/{job_id}/events",
    summary="Follow a job until it has ended",
    response_class=EventSourceResponse,
    # Spelt out: a model alone would be documented as an event stream too.
    responses={404: {"description": "no such job", "content": {"application/json": {"schema": _PROBLEM}}}},
)
async def follow_job(
    job: Annotated[JobView, Depends(read_job)], sessions: Sessions, resources: Shared
) -> AsyncIterator[ServerSentEvent]:
    """Send the job as it is, then each change; ends with the job."""
    async for changed in resources.job_changes.follow(sessions, job.job_id):
        yield ServerSentEvent(event=changed.state, data=JobView.of(changed))


@router.get("/dead-letters", summary="Jobs that failed at their last attempt")
async def list_dead_letters(session: DatabaseSession, limit: Limit = 100) -> list[JobView]:
    """List dead letters, newest first."""
    return await list_jobs(session, JobKind.QUEUE, JobState.DEAD, limit)


@router.post(
    "/dead-letters/{job_id}/requeue",
    summary="Give a dead letter its attempts again",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**NO_JOB, 409: {"model": Problem, "description": "the job is not a dead letter"}},
)
async def requeue_dead_letter(job_id: UUID, session: JobSession, resources: Shared) -> JobTaken:
    """Put a dead letter back on the queue, once its cause is removed."""
    async with session.begin():
        if await requeue(resources.job_queue, session, job_id):
            return JobTaken(job_id=job_id)
        known = await session.get(Job, job_id)
    if known is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such job")
    raise HTTPException(status.HTTP_409_CONFLICT, "the job is not a dead letter")
