"""Where a request meets the application: at the server's seam, so that whatever is outermost is covered.

Servers are hooked where they start to serve, after they have found out what kind of application theirs is. A server
that is not known is covered by the class-level hooks of Starlette and FastAPI, which are taken back where a server's
own seam is used: a request gets one record.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from timesplit import instrumentation

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent

Function = Callable[..., Any]
SERVERS = ("gunicorn.workers.gasgi", "hypercorn.app_wrappers", "uvicorn.server")
_LAYERS = 50  # of middleware around an application
_FALLBACKS = ("starlette Starlette.__call__", "fastapi FastAPI.__call__")


def arm_uvicorn(agent: "Agent") -> None:
    """Record what uvicorn serves, also under gunicorn's uvicorn workers."""

    def make(startup: Function) -> Function:
        async def started(self: Any, *args: Any, **kwargs: Any) -> Any:
            agent.serve(self.config, "loaded_app")
            agent.enter_loop()
            return await startup(self, *args, **kwargs)

        return started

    server: Any = sys.modules["uvicorn.server"].Server
    agent.hooks.replace("uvicorn Server.startup", server, "startup", make)


def arm_gunicorn(agent: "Agent") -> None:
    """Record what gunicorn's own ASGI worker serves."""

    def make(run: Function) -> Function:
        def running(self: Any, *args: Any, **kwargs: Any) -> Any:
            agent.serve(self, "asgi")
            agent.enter_loop(self.loop)
            return run(self, *args, **kwargs)

        return running

    worker: Any = sys.modules["gunicorn.workers.gasgi"].ASGIWorker
    agent.hooks.replace("gunicorn ASGIWorker.run", worker, "run", make)


def arm_hypercorn(agent: "Agent") -> None:
    """Record what hypercorn serves."""

    def make(init: Function) -> Function:
        def made(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            agent.serve(self, "app")  # its loop is not there yet: it is hooked at the lifespan

        return made

    wrapper: Any = sys.modules["hypercorn.app_wrappers"].ASGIWrapper
    agent.hooks.replace("hypercorn ASGIWrapper", wrapper, "__init__", make)


def arm_starlette(agent: "Agent") -> None:
    """Record the calls of Starlette applications, where the server is not known."""
    _arm_calls(agent, _FALLBACKS[0], sys.modules["starlette.applications"].Starlette)


def arm_fastapi(agent: "Agent") -> None:
    """Record the calls of FastAPI applications, where the server is not known."""
    _arm_calls(agent, _FALLBACKS[1], sys.modules["fastapi.applications"].FastAPI)


def take_over(agent: "Agent", server: Any, attribute: str) -> None:
    """Put a recorded application in the place of the one that a server is about to serve."""
    app = getattr(server, attribute)
    if isinstance(app, partial) and app.func == agent.enter:
        return
    agent.served += 1
    name = f"served application {agent.served}"
    agent.hooks.replace(name, server, attribute, partial(partial, agent.enter))
    for fallback in _FALLBACKS:
        agent.hooks.give_back(fallback, "not needed: the server's own seam is used")


def make_spans(agent: "Agent", app: Any) -> None:
    """Make spans of the requests of the FastAPI application that is in what a server serves, if one is."""
    fastapi = sys.modules.get("fastapi")
    for _ in range(_LAYERS):
        if fastapi is not None and isinstance(app, fastapi.FastAPI):
            instrumentation.make_spans(app, asked=False)
            return
        app = getattr(app, "app", None)
    agent.hooks.leave(
        "spans of mode otel", "what is served is no FastAPI application, nor has one as its `app`"
    )


def _arm_calls(agent: "Agent", name: str, owner: Any) -> None:
    if agent.served or "__call__" not in vars(owner):
        return

    def make(app: Function) -> Function:
        # `async`: servers tell ASGI 3 from ASGI 2 by looking whether __call__ is a coroutine function.
        async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> None:
            await agent.enter_within(app.__get__(self), scope, receive, send)

        return __call__

    agent.hooks.replace(name, owner, "__call__", make)
