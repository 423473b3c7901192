"""The routes, by the kind of work that they do. A mistake says so in its name, summary and tag."""

from typing import Any

from service.schemas import Problem

MISTAKE = "mistake"
BAD_BODY: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the body is no JSON"},
    413: {"model": Problem, "description": "the body is too large"},
}
