"""The upstream service's application."""

import asyncio
import ipaddress
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, status

from service.schemas import Health, Preferences, Problem, Profile, Recommendations
from service.shutdown import pause, stopping_event
from service.upstream.behaviour import Behaviour

PLANS = ("free", "basic", "pro")
LANGUAGES = ("de", "en", "es", "fr")
_HANG_LOOKS = 0.5  # a hanging request looks this often, in seconds, whether its client is still there


class _Upstream:
    """The behaviour of the moment, and requests going through it."""

    def __init__(self, behaviour: Behaviour, seed: int | None) -> None:
        self.behaviour = behaviour
        self.stopping = asyncio.Event()
        self._random = random.Random(seed)

    async def behave(self, request: Request) -> None:
        """Take the time, and fail or hang, as the behaviour says."""
        behaviour, chance = self.behaviour, self._random.random()
        if chance < behaviour.hang_rate:
            while not (self.stopping.is_set() or await request.is_disconnected()):
                await pause(self.stopping, _HANG_LOOKS)
        else:
            await pause(self.stopping, behaviour.draw_delay(self._random))
        if chance < behaviour.hang_rate + behaviour.failure_rate:
            raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, "failing, as told")


def create_upstream(behaviour: Behaviour, *, seed: int | None = None) -> FastAPI:
    """Make the upstream service.

    Args:
        behaviour: how it behaves until it is told otherwise.
        seed: makes delays and failures repeatable.
    """
    upstream = _Upstream(behaviour, seed)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with stopping_event() as upstream.stopping:
            yield

    app = FastAPI(title="timesplit upstream service", version="1", lifespan=lifespan)
    app.include_router(_answers(upstream))
    app.include_router(_controls(upstream))
    return app


def _answers(upstream: _Upstream) -> APIRouter:
    router = APIRouter(
        dependencies=[Depends(upstream.behave)],
        responses={503: {"model": Problem, "description": "it fails, as told"}},
    )

    @router.get("/profiles/{user_id}")
    async def profile(user_id: int) -> Profile:
        """Answer with a user's profile."""
        return Profile(user_id=user_id, plan=PLANS[user_id % len(PLANS)])

    @router.get("/preferences/{user_id}")
    async def preferences(user_id: int) -> Preferences:
        """Answer with a user's preferences."""
        return Preferences(language=LANGUAGES[user_id % len(LANGUAGES)])

    @router.get("/recommendations/{user_id}")
    async def recommendations(user_id: int) -> Recommendations:
        """Answer with what a user may like."""
        return Recommendations(recommended=[f"Product {(user_id + step) % 500}" for step in (1, 2, 3)])

    return router


def _controls(upstream: _Upstream) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> Health:
        """Answer at once, however the rest behaves."""
        return Health()

    @router.get("/behaviour")
    async def read_behaviour() -> Behaviour:
        """Answer with the behaviour of the moment."""
        return upstream.behaviour

    @router.put("/behaviour", dependencies=[Depends(_from_this_host)])
    async def set_behaviour(behaviour: Behaviour) -> Behaviour:
        """Behave otherwise from now on; what is left out gets its default."""
        upstream.behaviour = behaviour
        return behaviour

    return router


async def _from_this_host(request: Request) -> None:
    if request.client is None or not ipaddress.ip_address(request.client.host).is_loopback:
        raise HTTPException(status.HTTP_403_FORBIDDEN, "the behaviour can be set from this host only")
