"""Word of changed jobs, for those who follow one: PostgreSQL's LISTEN, on one connection per worker."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from service.database import plain_url
from service.models import Job, JobState
from service.settings import Settings
from service.shutdown import pause

# Followers look again after so many seconds, word or not: a lost connection only delays them.
_LOOK_AGAIN = 1.0
_ENDED = (JobState.FINISHED, JobState.DEAD)


class JobChanges:
    """Wakes the followers of a job when it changes."""

    def __init__(self, settings: Settings, stopping: asyncio.Event) -> None:
        self._database = plain_url(settings)
        self._stopping = stopping
        self._followers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Meanwhile listen to the database, again and again where the connection is lost."""
        listener = asyncio.create_task(self._listen_forever())
        try:
            yield
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def follow(self, sessions: async_sessionmaker[AsyncSession], job_id: UUID) -> AsyncIterator[Job]:
        """Yield the job as it is, and whenever it has changed, until it has ended or the server stops."""
        seen: tuple[JobState, int] | None = None
        with self._told_of(job_id) as changed:
            while not self._stopping.is_set():
                changed.clear()
                # A session for each look: no connection is held while nothing happens.
                async with sessions() as session:
                    job = await session.get_one(Job, job_id)
                if (job.state, job.attempts) != seen:
                    seen = (job.state, job.attempts)
                    yield job
                if job.state in _ENDED:
                    return
                await pause(changed, _LOOK_AGAIN)

    @contextmanager
    def _told_of(self, job_id: UUID) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        self._followers[str(job_id)].add(changed)
        try:
            yield changed
        finally:
            self._followers[str(job_id)].discard(changed)
            if not self._followers[str(job_id)]:
                del self._followers[str(job_id)]

    async def _listen_forever(self) -> None:
        while True:
            try:
                await self._listen()
            except psycopg.Error:
                await asyncio.sleep(_LOOK_AGAIN)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(self._database, autocommit=True)
        async with connection:
            await connection.execute("LISTEN job_changes")
            async for change in connection.notifies():
                for changed in self._followers.get(change.payload, ()):
                    changed.set()
