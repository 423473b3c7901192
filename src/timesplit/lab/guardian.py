"""Ends the lab's children when the lab itself is gone, however it went.

A process of its own that reads standard input, a pipe whose other end only the lab holds. Each line is
`<pid> <signal>`: a child that leads a process group, and the signal that ends it gently; signal 0 takes it
off the list. At the end of input everything on the list is ended, the youngest first. The parent-death signal
of Linux would be less code, but belongs to a thread, not a process, and macOS has none.

Standard library only, and run by path, so that it starts fast and stays small.
"""

import os
import signal
import sys
import time
from contextlib import suppress

GENTLE_SECONDS = 5.0


def main() -> None:
    """Follow the list until the lab is gone, then end what is on it."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    children: dict[int, int] = {}
    for line in sys.stdin:
        pid, number = map(int, line.split())
        children.pop(pid, None)
        if number:
            children[pid] = number
    end(children)


def end(children: dict[int, int]) -> None:
    """End all children gently, and after GENTLE_SECONDS what is left of their groups by force."""
    for pid, number in reversed(children.items()):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + GENTLE_SECONDS
    while time.monotonic() < deadline and any(map(_is_there, children)):
        time.sleep(0.05)
    for pid in children:
        # PermissionError: on macOS, a group of which only zombies are left.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
