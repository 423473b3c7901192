"""Calls of another HTTP service: shared and fresh clients, sync and async, with and without a timeout."""

import asyncio
from typing import Any, TypeVar

import httpx
import requests
from fastapi import APIRouter
from pydantic import BaseModel, ValidationError

from service.dependencies import Shared, SyncUpstream, Upstream, UserId
from service.resources import upstream_client
from service.routes import MISTAKE
from service.schemas import GatheredProfile, Preferences, Problem, Profile, Recommendations

UPSTREAM_FAILS: dict[int | str, dict[str, Any]] = {
    502: {"model": Problem, "description": "the upstream service failed"},
    504: {"model": Problem, "description": "the upstream service did not answer in time"},
}
router = APIRouter(tags=["upstream"], responses=UPSTREAM_FAILS)
Answer = TypeVar("Answer", bound=BaseModel)


class UpstreamFailed(Exception):
    """The upstream service answered something that cannot be used."""


def _parse(model: type[Answer], response: httpx.Response | requests.Response) -> Answer:
    if response.status_code != httpx.codes.OK:
        raise UpstreamFailed(f"the upstream service answered with status {response.status_code}")
    try:
        return model.model_validate_json(response.content)
    except ValidationError:
        raise UpstreamFailed("the upstream service answered something unknown") from None


@router.get("/profile/{user_id}", summary="Call upstream through the shared async client")
async def read_profile(user_id: UserId, upstream: Upstream) -> Profile:
    """Await the upstream service; connections are reused, waits are bounded."""
    return _parse(Profile, await upstream.get(f"/profiles/{user_id}"))


@router.get("/legacy-profile/{user_id}", summary="Call upstream with requests in a def route")
def read_profile_sync(user_id: UserId, upstream: SyncUpstream, resources: Shared) -> Profile:
    """Wait for the upstream service in a worker thread: right for a library without an async API."""
    return _parse(Profile, _get_sync(upstream, resources, user_id))


@router.get("/bad-profile/{user_id}", summary="MISTAKE: requests inside async def", tags=[MISTAKE])
async def mistake_blocking_profile(user_id: UserId, upstream: SyncUpstream, resources: Shared) -> Profile:
    """Block the event loop until the upstream service has answered."""
    return _parse(Profile, _get_sync(upstream, resources, user_id))


def _get_sync(upstream: requests.Session, resources: Shared, user_id: int) -> requests.Response:
    settings = resources.settings
    return upstream.get(f"{settings.upstream_url}profiles/{user_id}", timeout=settings.upstream_timeout)


@router.get(
    "/client-per-request/{user_id}", summary="MISTAKE: a client made for each request", tags=[MISTAKE]
)
async def mistake_client_per_request(user_id: UserId, resources: Shared) -> Profile:
    """Load certificates and open a connection for one call."""
    settings = resources.settings
    async with upstream_client(settings, timeout=settings.upstream_timeout) as upstream:
        return _parse(Profile, await upstream.get(f"/profiles/{user_id}"))


@router.get("/no-timeout/{user_id}", summary="MISTAKE: a client without timeout", tags=[MISTAKE])
async def mistake_no_timeout(user_id: UserId, resources: Shared) -> Profile:
    """Wait for ever where the upstream service hangs."""
    return _parse(Profile, await resources.upstream_without_timeout.get(f"/profiles/{user_id}"))


@router.get("/gathered-profile/{user_id}", summary="Three upstream calls at once")
async def read_gathered_profile(user_id: UserId, upstream: Upstream) -> GatheredProfile:
    """Wait as long as the slowest of three calls; where one fails, the others are given up."""
    try:
        async with asyncio.TaskGroup() as calls:
            profile = calls.create_task(upstream.get(f"/profiles/{user_id}"))
            preferences = calls.create_task(upstream.get(f"/preferences/{user_id}"))
            recommendations = calls.create_task(upstream.get(f"/recommendations/{user_id}"))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return GatheredProfile(
        **_parse(Profile, profile.result()).model_dump(),
        language=_parse(Preferences, preferences.result()).language,
        recommended=_parse(Recommendations, recommendations.result()).recommended,
    )
