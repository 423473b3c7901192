"""Learning early that the server stops.

A server runs the end of the lifespan only after the last response. A stream that waited for that would wait
for itself, so streams look at the event made here.
"""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping_event() -> Iterator[asyncio.Event]:
    """Yield an event that is set when the process is told to stop, ahead of the server's own handling.

    In a thread, where no signals arrive, it is never set.
    """
    stopping = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    loop = asyncio.get_running_loop()
    servers = {number: signal.getsignal(number) for number in _SIGNALS}

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        handler = servers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    replaced = [number for number, handler in servers.items() if callable(handler)]
    for number in replaced:
        signal.signal(number, stop)
    try:
        yield stopping
    finally:
        for number in replaced:
            signal.signal(number, servers[number])


async def pause(event: asyncio.Event, seconds: float) -> None:
    """Wait for so long, or until the event is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
