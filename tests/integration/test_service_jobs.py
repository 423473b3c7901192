import asyncio
import json
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from service.database import async_engine, job_engine
from service.jobs import JobDead, attempt, enqueue, job_queue
from service.models import Job, JobKind, JobState
from service.settings import Settings
from timesplit.lab.forwarding import answers
from timesplit.lab.processes import Child, Processes, free_port

QUICK = {"JOB_RETRY_DELAY": "0.05", "JOB_HEARTBEAT": "0.3", "JOB_STALLED_AFTER": "1"}
DEADLINE = 60.0

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture(scope="module")
def gunicorn(processes: Processes, service_environment: dict[str, str]) -> Iterator[tuple[Child, str]]:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--bind", address]
    child = processes.start("service", [*command, "service.app:create_app()"], env=service_environment)
    child.wait_ready(lambda: answers(f"http://{address}/readyz"))
    yield child, f"http://{address}"
    processes.stop(child)


@pytest.fixture
def client(gunicorn: tuple[Child, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gunicorn[1], trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def start_worker(processes: Processes, service_environment: dict[str, str]) -> Iterator[Callable[[], Child]]:
    """Starts a job worker; what still runs at the end of the test is stopped."""
    started: list[Child] = []

    def start() -> Child:
        environment = {**service_environment, **QUICK}
        child = processes.start("job-worker", [sys.executable, "-m", "service.worker"], env=environment)
        started.append(child)
        child.wait_ready(lambda: "job worker ready\n" in child.output())
        return child

    yield start
    for child in started:
        processes.stop(child)


@pytest.fixture
async def sessions(service_environment: dict[str, str]) -> AsyncIterator[Sessions]:
    engine = async_engine(settings(service_environment))
    yield async_sessionmaker(engine, expire_on_commit=False)
    await engine.dispose()


@pytest.fixture(autouse=True)
def empty_queue(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("TRUNCATE jobs, job_effects, procrastinate_jobs CASCADE")


def settings(environment: dict[str, str]) -> Settings:
    return Settings.model_validate(
        {name.lower(): value for name, value in environment.items() if name.endswith("_URL")}
    )


def post(client: httpx.Client, path: str = "/jobs", **job: Any) -> str:
    answer = client.post(path, json=job)
    assert answer.status_code == 202
    job_id: str = answer.json()["job_id"]
    return job_id


def wait_for(client: httpx.Client, done: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The jobs, as soon as they are as they should be."""
    deadline = time.monotonic() + DEADLINE
    while True:
        jobs: list[dict[str, Any]] = client.get("/jobs?limit=1000").json()
        if done(jobs):
            return jobs
        assert time.monotonic() < deadline, jobs
        time.sleep(0.05)


def finished(jobs: list[dict[str, Any]]) -> int:
    return sum(job["state"] == "finished" for job in jobs)


def test_a_job_is_queued_run_and_finished(client: httpx.Client, start_worker: Callable[[], Child]) -> None:
    job_id = post(client, seconds=0.05)
    before = client.get(f"/jobs/{job_id}").json()
    start_worker()

    (after,) = wait_for(client, lambda jobs: finished(jobs) == 1)

    same = {"job_id": job_id, "kind": "queue"}
    assert before == {**same, "state": "queued", "attempts": 0, "effects": 0}
    assert after == {**same, "state": "finished", "attempts": 1, "effects": 1}


def test_a_killed_job_worker_neither_loses_a_job_nor_repeats_its_effect(
    client: httpx.Client, start_worker: Callable[[], Child], database: str
) -> None:
    worker = start_worker()
    for _ in range(200):
        post(client, seconds=0.05)
    wait_for(client, lambda jobs: finished(jobs) >= 60)
    worker.signal(signal.SIGKILL)
    worker.wait(10)
    cut_short = [job for job in client.get("/jobs?limit=1000").json() if job["state"] == "running"]
    start_worker()

    jobs = wait_for(client, lambda jobs: finished(jobs) == 200)

    assert cut_short
    assert {job["effects"] for job in jobs} == {1}
    again = {job["job_id"] for job in jobs if job["attempts"] == 2}
    assert {job["job_id"] for job in cut_short} <= again
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM job_effects").fetchone() == (200,)


async def test_a_job_that_two_workers_run_at_once_takes_effect_once(sessions: Sessions) -> None:
    job = await new_job(sessions, seconds=0.2)

    await asyncio.gather(*(attempt(sessions, job.id, max_attempts=4) for _ in range(3)))

    after = await read(sessions, job.id)
    assert (after.state, after.effects, after.attempts) == ("finished", 1, 3)


async def test_a_finished_job_is_not_run_again(sessions: Sessions) -> None:
    job = await new_job(sessions, seconds=0)
    await attempt(sessions, job.id, max_attempts=4)

    await attempt(sessions, job.id, max_attempts=4)

    after = await read(sessions, job.id)
    assert (after.effects, after.attempts) == (1, 1)


async def test_a_job_whose_workers_all_ended_is_not_given_another(sessions: Sessions) -> None:
    job = await new_job(sessions, seconds=30, state=JobState.RUNNING, attempts=2)

    with pytest.raises(JobDead, match="cut short 2 times"):
        await attempt(sessions, job.id, max_attempts=2)

    assert (await read(sessions, job.id)).state == "dead"


async def new_job(sessions: Sessions, **values: Any) -> Job:
    job = Job(kind=JobKind.QUEUE, poison=False, **values)
    async with sessions.begin() as session:
        session.add(job)
    return job


async def read(sessions: Sessions, job_id: uuid.UUID) -> Job:
    async with sessions() as session:
        return await session.get_one(Job, job_id)


def test_a_poisoned_job_is_retried_then_dead_and_can_be_requeued(
    client: httpx.Client, start_worker: Callable[[], Child], database: str
) -> None:
    start_worker()
    job_id = post(client, seconds=0, poison=True)
    (dead,) = wait_for(client, lambda jobs: jobs[0]["state"] == "dead")
    assert dead["attempts"] == 4
    assert dead["effects"] == 0
    assert client.get("/dead-letters").json() == [dead]

    with psycopg.connect(database) as connection:
        connection.execute("UPDATE jobs SET poison = false")
    requeued = client.post(f"/dead-letters/{job_id}/requeue")

    assert (requeued.status_code, requeued.json()) == (202, {"job_id": job_id})
    (healed,) = wait_for(client, lambda jobs: finished(jobs) == 1)
    assert (healed["attempts"], healed["effects"]) == (1, 1)
    assert client.get("/dead-letters").json() == []


def test_only_dead_letters_are_requeued(client: httpx.Client) -> None:
    job_id = post(client, seconds=0)

    refused = client.post(f"/dead-letters/{job_id}/requeue")

    assert (refused.status_code, refused.json()) == (409, {"detail": "the job is not a dead letter"})


async def test_a_job_whose_transaction_fails_leaves_no_message(
    service_environment: dict[str, str], database: str
) -> None:
    engine = job_engine(settings(service_environment))
    sessions = async_sessionmaker(engine)
    queue = job_queue(settings(service_environment), sessions)
    async with sessions() as session:
        await enqueue(queue, session, Job(kind=JobKind.QUEUE, seconds=0, poison=False))
        await session.rollback()
    await engine.dispose()

    with psycopg.connect(database) as connection:
        counts = "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM procrastinate_jobs)"
        assert connection.execute(counts).fetchone() == (0, 0)


def test_a_job_can_be_followed_to_its_end(client: httpx.Client, start_worker: Callable[[], Child]) -> None:
    job_id = post(client, seconds=0.3)
    states = []
    with client.stream("GET", f"/jobs/{job_id}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                states.append(json.loads(line.removeprefix("data: "))["state"])
            if states == ["queued"] and line == "":
                start_worker()

    assert states == ["queued", "running", "finished"]


def test_a_job_worker_told_to_stop_ends_what_it_began(
    client: httpx.Client, start_worker: Callable[[], Child]
) -> None:
    worker = start_worker()
    post(client, seconds=1)
    wait_for(client, lambda jobs: jobs[0]["state"] == "running")

    worker.signal(signal.SIGTERM)

    assert worker.wait(10) == 0
    (job,) = client.get("/jobs").json()
    assert (job["state"], job["attempts"]) == ("finished", 1)


def test_background_tasks_die_with_their_worker(gunicorn: tuple[Child, str], client: httpx.Client) -> None:
    quick = [post(client, "/background-jobs", seconds=0) for _ in range(5)]
    wait_for(client, lambda jobs: finished(jobs) == 5)
    slow = [post(client, "/background-jobs", seconds=5) for _ in range(5)]
    wait_for(client, lambda jobs: sum(job["state"] == "running" for job in jobs) == 5)

    (worker,) = psutil.Process(gunicorn[0].pid).children()
    worker.kill()
    worker.wait(10)

    wait_until_answers(client)
    jobs = {job["job_id"]: job["state"] for job in client.get("/jobs?kind=background").json()}
    assert {jobs[job_id] for job_id in quick} == {"finished"}
    assert {jobs[job_id] for job_id in slow} == {"running"}


def test_a_failing_background_task_is_dead_at_once(client: httpx.Client) -> None:
    post(client, "/background-jobs", seconds=0, poison=True)

    (job,) = wait_for(client, lambda jobs: jobs[0]["state"] == "dead")

    assert job["attempts"] == 1
    assert client.get("/dead-letters").json() == []


def wait_until_answers(client: httpx.Client) -> None:
    deadline = time.monotonic() + DEADLINE
    while not answers(f"{client.base_url}/healthz"):
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        pytest.param(
            "unreachable",
            "postgresql://nobody@127.0.0.1:9/none",
            "The job worker cannot reach the database at DATABASE_URL",
            id="unreachable",
        ),
        pytest.param(
            "empty",
            None,
            "The database has no job queue: run `python -m service.database migrate`",
            id="empty",
        ),
    ],
)
def test_a_job_worker_without_its_database_says_so_in_one_line(
    processes: Processes,
    service_environment: dict[str, str],
    postgres: str,
    name: str,
    url: str | None,
    message: str,
) -> None:
    environment = {**service_environment, "DATABASE_URL": url or postgres}
    child = processes.start(f"worker-{name}", [sys.executable, "-m", "service.worker"], env=environment)

    assert child.wait(30) == 1
    assert child.output().startswith(message)
    assert len(child.output().splitlines()) == 1
