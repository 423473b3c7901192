"""CPU work: short enough for the request path, and too long for it."""

import time
from typing import Annotated

from fastapi import APIRouter, Query

from service.routes import MISTAKE
from service.schemas import Computed

router = APIRouter(tags=["cpu"])
_SHORT = 2_000  # squares: about a tenth of a millisecond


def _sum_of_squares(numbers: int) -> int:
    return sum(number * number for number in range(numbers))


@router.get(
    "/cpu-def", summary="Short pure Python in a def route: a worker thread costs about as much as the work"
)
def cpu_def() -> Computed:
    """Compute in a worker thread."""
    return Computed(result=_sum_of_squares(_SHORT))


@router.get("/cpu-async", summary="Short pure Python in an async route")
async def cpu_async() -> Computed:
    """Compute on the event loop: right for something so short."""
    return Computed(result=_sum_of_squares(_SHORT))


@router.get("/cpu-in-path", summary="MISTAKE: long CPU work in the request path", tags=[MISTAKE])
async def mistake_cpu_in_path(
    milliseconds: Annotated[int, Query(ge=0, le=1000, description="CPU time")] = 50,
) -> Computed:
    """Compute on the event loop for so long in CPU time: every other request of this worker waits as well."""
    rounds, until = 0, time.thread_time_ns() + milliseconds * 1_000_000
    while time.thread_time_ns() < until:
        _sum_of_squares(_SHORT)
        rounds += 1
    return Computed(result=rounds)
