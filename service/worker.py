"""The job worker: `python -m service.worker` runs jobs from the queue until it is told to stop."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import procrastinate
from procrastinate.exceptions import ConnectorException
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from service.database import async_engine
from service.jobs import job_queue
from service.settings import Settings, read_settings

# Jobs that wait for a retry are found by polling; new ones are announced by PostgreSQL.
_POLLING_INTERVAL = 0.25


async def run_worker(settings: Settings) -> None:
    """Run jobs until SIGTERM or SIGINT; jobs that run then have the graceful timeout to end.

    Raises:
        SystemExit: the database cannot be reached, lacks the schema, or went away.
    """
    engine = async_engine(settings)
    queue = job_queue(settings, async_sessionmaker(engine, expire_on_commit=False))
    try:
        await _check_database(engine)
        async with queue.open_async(), _rescue(queue, settings):
            sys.stdout.write("job worker ready\n")
            sys.stdout.flush()
            await _run_until_told(queue, settings)
    finally:
        await engine.dispose()


async def _check_database(engine: AsyncEngine) -> None:
    try:
        async with engine.connect() as connection:
            has_queue = await connection.scalar(text("SELECT to_regclass('procrastinate_jobs') IS NOT NULL"))
    except (OSError, SQLAlchemyError) as error:
        raise SystemExit(f"The job worker cannot reach the database at DATABASE_URL: {error}") from None
    if not has_queue:
        raise SystemExit("The database has no job queue: run `python -m service.database migrate` first")


async def _run_until_told(queue: procrastinate.App, settings: Settings) -> None:
    running = asyncio.ensure_future(
        queue.run_worker_async(
            concurrency=settings.job_concurrency,
            fetch_job_polling_interval=_POLLING_INTERVAL,
            shutdown_graceful_timeout=settings.graceful_timeout,
            update_heartbeat_interval=settings.job_heartbeat,
            stalled_worker_timeout=settings.job_stalled_after,
            install_signal_handlers=False,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        return
    # procrastinate logs why and ends without an error; whoever supervises this process should see one.
    raise SystemExit("The job worker lost the database")


@asynccontextmanager
async def _rescue(queue: procrastinate.App, settings: Settings) -> AsyncIterator[None]:
    """Meanwhile put jobs of workers that were killed back into the queue."""

    async def rescue_forever() -> None:
        while True:
            await rescue_stalled_jobs(queue, settings.job_stalled_after)
            await asyncio.sleep(settings.job_heartbeat)

    rescuer = asyncio.create_task(rescue_forever())
    try:
        yield
    finally:
        rescuer.cancel()
        await asyncio.gather(rescuer, return_exceptions=True)


async def rescue_stalled_jobs(queue: procrastinate.App, stalled_after: float) -> None:
    """Put the jobs of workers that gave no heartbeat for so many seconds back into the queue."""
    try:
        for job in await queue.job_manager.get_stalled_jobs(seconds_since_heartbeat=stalled_after):
            await queue.job_manager.retry_job(job)
    except ConnectorException:
        # Another job worker was quicker, or the database is away: the next round sees what is left.
        pass


def main() -> None:
    """Run the job worker."""
    asyncio.run(run_worker(read_settings(Settings)))


if __name__ == "__main__":
    main()
