"""The agent of a worker process: arms the hooks, opens the journal, and takes both back.

Hooks on classes are armed at once; what belongs to a process or a loop (the journal, the loop's hooks) waits for the
first call in that process, so that a fork after import, as with gunicorn's `--preload`, is harmless.
"""

import asyncio
import os
import platform
import secrets
import socket
import sys
from collections.abc import Callable
from typing import Any

from timesplit.instrumentation.hooks import Hooks
from timesplit.instrumentation.journal import Journal, journal_folder
from timesplit.instrumentation.loop import LoopHooks
from timesplit.instrumentation.request import MARK, App, Receive, Scope, Send, call

Arm = Callable[["Agent"], None]
# Module that must be imported → what arms its hooks.
LIBRARIES: dict[str, Arm] = {}


class Agent:
    """What this process records, and how."""

    def __init__(self) -> None:
        self.hooks = Hooks()
        self._journal: Journal | None = None
        self._loops: dict[asyncio.AbstractEventLoop, LoopHooks] = {}

    def arm(self) -> None:
        """Arm the hooks of what is imported by now; call it again when more is."""
        for module, arm in LIBRARIES.items():
            if module in sys.modules:
                arm(self)

    def disarm(self) -> None:
        """Take every hook back, and end the journal."""
        for hooks in self._loops.values():
            hooks.disarm()
        self._loops.clear()
        self.hooks.undo()
        if self._journal is not None:
            self._journal.discard()
            self._journal = None

    @property
    def journal(self) -> Journal:
        """This process's journal, made at the first use."""
        journal = self._journal
        if journal is None or journal.pid != os.getpid():
            if journal is not None:
                journal.discard()
                self._loops.clear()
            journal = self._journal = Journal(journal_folder(), secrets.token_hex(8), self._about())
        return journal

    def enter_loop(self) -> None:
        """Arm the running loop, if it is not yet, and what the application has imported by now."""
        loop = asyncio.get_running_loop()
        journal = self.journal
        if loop not in self._loops and journal is not None:
            self._loops[loop] = LoopHooks(loop)
            self._loops[loop].arm()
            self.arm()

    def _about(self) -> dict[str, object]:
        return {
            "host": socket.gethostname(),
            "service": os.environ.get("OTEL_SERVICE_NAME", "unknown_service"),
            "core": "python",
            "python": platform.python_version(),
            "hooks": {hook.name: hook.why or "armed" for hook in self.hooks.found.values()},
        }


def arm_applications(agent: Agent) -> None:
    """Record the calls of Starlette and FastAPI applications: the outermost one makes the record."""
    from starlette.applications import Starlette  # imported by the application, or we are not here

    classes: list[Any] = [Starlette]
    if "fastapi" in sys.modules:
        classes.append(sys.modules["fastapi"].FastAPI)
    for owner in classes:
        agent.hooks.replace(
            f"{owner.__name__}.__call__", owner, "__call__", lambda app: _recorded(agent, app)
        )


def _recorded(agent: Agent, app: App) -> App:
    # `async def`: uvicorn tells ASGI 3 from ASGI 2 by looking whether __call__ is a coroutine function.
    async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            agent.enter_loop()
        if scope["type"] != "http" or scope.get(MARK) is True:
            await app(self, scope, receive, send)
            return
        await call(agent.journal, app, self, scope, receive, send)

    return __call__


LIBRARIES["starlette.applications"] = arm_applications
