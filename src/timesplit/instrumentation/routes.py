"""The template of the route that answers a request, such as `/users/{user_id}`, with all its prefixes.

Told where Starlette and FastAPI hand a request to the route that they have chosen, so that it does not matter
which middleware copies the scope, or who mounts or includes whom.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from timesplit.instrumentation.loop import current_request
from timesplit.instrumentation.request import MARK

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent

Handle = Callable[..., Any]
Note = Callable[[Any, Any, Any], None]  # request, route, scope


def arm_starlette(agent: "Agent") -> None:
    """Note the routes and mounts of Starlette that are chosen."""
    routing: Any = sys.modules["starlette.routing"]
    for owner, note in (
        (routing.Route, _route_chosen),
        (routing.WebSocketRoute, _route_chosen),
        (routing.Mount, _mount_chosen),
    ):
        agent.hooks.replace(f"starlette {owner.__name__}.handle", owner, "handle", _noting(note))


def arm_fastapi(agent: "Agent") -> None:
    """Note the routes of included routers, where FastAPI handles those itself."""
    owner: Any = sys.modules["fastapi.routing"].APIRoute
    if "handle" in vars(owner):
        agent.hooks.replace("fastapi APIRoute.handle", owner, "handle", _noting(_included_chosen))


def _noting(note: Note) -> Callable[[Handle], Handle]:
    def make(handle: Handle) -> Handle:
        # Not `async`: a frame less in each of the request's steps.
        def noted(self: Any, scope: Any, receive: Any, send: Any) -> Any:
            request = current_request()
            if request is not None and scope.get(MARK) is True:  # False: a call within the process
                try:
                    note(request, self, scope)
                except Exception:
                    request.failed()
            return handle(self, scope, receive, send)

        return noted

    return make


def _route_chosen(request: Any, route: Any, _: Any) -> None:
    request.route = request.mounted + route.path


def _mount_chosen(request: Any, mount: Any, _: Any) -> None:
    request.mounted += mount.path
    request.route = request.mounted + "/{path}"  # until a route of the mounted application is chosen


def _included_chosen(request: Any, route: Any, scope: Any) -> None:
    context = scope.get("fastapi", {}).get("effective_route_context")
    if context is not None and context.original_route is route:
        request.route = request.mounted + context.path
