"""The agent of a worker process: arms the hooks, opens the journal, and takes both back.

Hooks on classes are armed at once, those of libraries that are imported later when they are. What belongs to a
process or a loop (the journal, the loop's hooks) waits until a server starts there, so that a fork after import,
as with gunicorn's `--preload`, is harmless.
"""

import asyncio
import json
import logging
import os
import platform
import socket
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from typing import Any

from timesplit.clocks import boot_id
from timesplit.instrumentation import (
    cache,
    database,
    foreign,
    identity,
    ingress,
    mode,
    offload,
    postgres,
    routes,
    servers,
    streams,
    upstream,
    wants_ledger,
)
from timesplit.instrumentation.culprits import Collections, Culprits
from timesplit.instrumentation.hooks import Hooks
from timesplit.instrumentation.imports import Watch
from timesplit.instrumentation.journal import Journal, journal_folder
from timesplit.instrumentation.loop import LoopHooks, here
from timesplit.instrumentation.request import MARK, App, Receive, Scope, Send, call
from timesplit.instrumentation.watchdog import Watchdog

log = logging.getLogger(__name__)

Arm = Callable[["Agent"], None]
# Module that must be imported → what arms its hooks.
LIBRARIES: dict[str, Arm] = {
    "aiohttp": upstream.arm_aiohttp,
    "anyio": offload.arm_anyio,
    "anyio.to_process": offload.arm_anyio_processes,
    "asyncpg": postgres.arm_asyncpg,
    "concurrent.futures": offload.arm_threads,
    "concurrent.futures.process": offload.arm_processes,
    "fastapi.applications": servers.arm_fastapi,
    "fastapi.concurrency": offload.arm_fastapi,
    "fastapi.routing": routes.arm_fastapi,
    "gunicorn.asgi.protocol": ingress.arm_gunicorn,
    "gunicorn.workers.gasgi": servers.arm_gunicorn,
    "httpcore": upstream.arm_httpcore,
    "hypercorn.app_wrappers": servers.arm_hypercorn,
    "opentelemetry.sdk.trace": foreign.arm,
    "psycopg": postgres.arm_psycopg,
    "psycopg_pool": postgres.arm_psycopg_pool,
    "redis": cache.arm_redis,
    "sqlalchemy.engine.default": database.arm_dialects,
    "sqlalchemy.pool.impl": database.arm_pool,
    "starlette.applications": servers.arm_starlette,
    "starlette.routing": routes.arm_starlette,
    "urllib3": upstream.arm_urllib3,
    "uvicorn.server": servers.arm_uvicorn,
    "valkey": cache.arm_valkey,
    **dict.fromkeys(ingress.UVICORN, ingress.arm_uvicorn),
    **dict.fromkeys(database.DIALECTS, database.arm_dialects),
}
ABOUT_BYTES = 3000  # what fits in the journal's header
_VERSIONS = ("fastapi", "starlette", "uvicorn", "gunicorn", "uvloop", "anyio")


class Agent:
    """What this process records, and how.

    Attributes:
        hooks: what was replaced, and what could not be.
        ledger: whether requests get accounts.
        spans: whether applications that are served get spans of mode `otel`.
        armed: whether anything is done at all.
        served: how many applications are recorded at their server's seam.
        watch: tells of libraries that are imported later.
    """

    def __init__(self, *, ledger: bool = True, spans: bool = False) -> None:
        self.hooks = Hooks()
        self.ledger = ledger
        self.spans = spans
        self.armed = False
        self.served = 0
        self.watch = Watch(LIBRARIES, self._imported)
        self._journal: Journal | None = None
        self._loops: dict[asyncio.AbstractEventLoop, LoopHooks] = {}
        self._culprits: list[Culprits] = []
        self._collections = Collections(self._culprits)
        self._watchdog = Watchdog()
        _agents.add(self)

    def arm(self) -> None:
        """Arm the hooks of what is imported by now; what is imported later is armed then."""
        self.armed = True
        self.watch.names = set(LIBRARIES)
        self.watch.arm()
        for module in LIBRARIES:
            if _is_complete(module):
                self._imported(module)

    def disarm(self) -> None:
        """Take every hook back, and end the journal."""
        self.armed = False
        self.watch.disarm()
        for hooks in self._loops.values():
            hooks.disarm()
        self.hooks.undo()
        self.forget()

    def forget(self) -> None:
        """Let go of journal and loops: another process's, where this one is its fork."""
        self._loops.clear()
        self._culprits.clear()
        self._collections.disarm()
        self._watchdog.stop()
        self._watchdog = Watchdog()
        here.loop = None
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.discard()

    @property
    def journal(self) -> Journal:
        """This process's journal, made at the first use.

        Raises:
            OSError: it cannot be made.
        """
        if self._journal is None:
            self._journal = Journal(journal_folder(), identity.make(), self._about())
        return self._journal

    def serve(self, server: Any, attribute: str) -> None:
        """Record what a server is about to serve: the application that one of its attributes holds. Never fails."""
        if not self.armed:
            return
        try:
            if self.spans:
                servers.make_spans(self, getattr(server, attribute))
            if self.ledger:
                servers.take_over(self, server, attribute)
        except Exception as error:
            self.hooks.leave("served application", f"{type(error).__name__}: {error}")

    def enter_loop(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Open the journal, and hook a loop, the running one if none is given. Never fails: the service goes on."""
        if not self.armed or not self.ledger:
            return
        try:
            loop = loop or asyncio.get_running_loop()
            if loop not in self._loops:
                self.arm()
                self._hook(loop)
        except Exception as error:
            self.armed = False  # once is enough: the reason will not go away
            self.hooks.leave("journal", f"{type(error).__name__}: {error}")
            log.warning("timesplit records nothing here: %s", error)

    def _hook(self, loop: asyncio.AbstractEventLoop) -> None:
        culprits = Culprits(self.journal, self._watchdog)
        hooks = LoopHooks(loop, culprits)
        self._watchdog.watch(hooks, culprits)
        self._culprits.append(culprits)
        self._collections.arm()
        self._loops[loop] = hooks
        hooks.arm()

    def application(self, app: App) -> App:
        """Return the application itself, given what a server serves."""
        return app.args[0] if isinstance(app, partial) and app.func == self.enter else app

    def enter(self, app: App, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call an application as its server does; a request that has no record yet gets one."""
        kind = scope["type"]
        if kind == "lifespan":
            self.enter_loop()
        elif scope.get(MARK) is not True:
            if here.loop is None:  # a server that says nothing at its start
                self.enter_loop()
            if here.loop is not None and self._journal is not None:
                begin = call if kind == "http" else streams.call
                return begin(self._journal, here.loop, app, scope, receive, send)
        return app(scope, receive, send)

    def enter_within(self, app: App, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call an application as anybody does; a call within a request, without a network, is no request."""
        if here.strand is None:
            return self.enter(app, scope, receive, send)
        return app(scope, receive, send)

    def _imported(self, module: str) -> None:
        """Arm the hooks of a library that has been imported."""
        if not self.armed or not (self.ledger or module in servers.SERVERS):
            return
        try:
            LIBRARIES[module](self)
        except Exception as error:
            self.hooks.leave(module, f"{type(error).__name__}: {error}")

    def _about(self) -> dict[str, object]:
        hooks = {hook.name: hook.why or "armed" for hook in self.hooks.found.values()}
        about: dict[str, object] = {
            "host": socket.gethostname(),
            "boot_id": boot_id(),
            "service": os.environ.get("OTEL_SERVICE_NAME", "unknown_service"),
            "traces": mode(),
            "core": "python",
            "versions": {"python": platform.python_version(), **dict(_versions())},
            "hooks": hooks,
        }
        while hooks and len(json.dumps(about)) > ABOUT_BYTES:
            hooks.popitem()
        return about


def _is_complete(module: str) -> bool:
    found = sys.modules.get(module)
    return found is not None and not getattr(getattr(found, "__spec__", None), "_initializing", False)


def _versions() -> Iterator[tuple[str, str]]:
    """Yield (package, version) of what is imported. From the modules: reading metadata takes longer than a start."""
    for package in _VERSIONS:
        version = getattr(sys.modules.get(package), "__version__", None)
        if version is not None:
            yield package, str(version)


_agents: weakref.WeakSet[Agent] = weakref.WeakSet()
_process: list[Agent] = []  # the one that `arm` made


def arm() -> Agent:
    """Arm this process's agent, made at the first call."""
    if not _process:
        _process.append(Agent())
    agent = _process[0]
    agent.ledger = True
    agent.arm()
    return agent


def arm_injected(name: str, path: Any, target: Any) -> ModuleSpec | None:
    """Arm this process's agent, as its environment says, when a server or framework is imported; find that module.

    Raises:
        UsageError: `TIMESPLIT_TRACES` names no mode.
    """
    ledger, spans = wants_ledger(), mode() == "otel"
    if not ledger and not spans:
        return None
    agent = Agent(ledger=ledger, spans=spans)
    _process.append(agent)
    agent.arm()
    return agent.watch.find_spec(name, path, target)


def disarm() -> None:
    """Take back all that `arm` did, in this process."""
    if _process:
        _process.pop().disarm()


def _forked() -> None:
    for agent in list(_agents):
        agent.forget()


os.register_at_fork(after_in_child=_forked)
