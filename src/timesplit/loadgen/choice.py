"""Which user classes run where nobody names any.

Locust runs every class of every locustfile that it is given. A folder of scenarios has a class for each
question, and all at once would answer none: those marked `by_name` run only when they are chosen.
"""

from typing import Any

from locust.env import Environment


def leave_out_by_name(environment: Environment, web_ui: Any) -> None:
    """Leave the classes marked `by_name` out, unless some are chosen, or there are no others.

    Args:
        environment: Locust's environment.
        web_ui: Locust's page, if it has one.
    """
    if environment.parsed_options is not None and environment.parsed_options.user_classes:
        return
    _leave_out(environment)
    if web_ui is None:
        return
    update = web_ui._update_user_classes

    def update_user_classes(chosen: dict[str, type]) -> None:
        update(chosen)
        # The page's picker has all classes ticked until somebody chooses.
        if len(chosen) == len(environment.available_user_classes or ()):
            _leave_out(environment)

    # Locust has no event for the choice that is made on its page.
    web_ui._update_user_classes = update_user_classes


def _leave_out(environment: Environment) -> None:
    default = [user for user in environment.user_classes if not getattr(user, "by_name", False)]
    environment.user_classes = default or environment.user_classes
