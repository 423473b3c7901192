"""Another service is called: with a shared client, in a thread, on the event loop, with a client per request."""

import random

from locust import between, task

from timesplit.loadgen import FastHttpUser

USERS = 10_000  # as the demo service is seeded


class UpstreamUser(FastHttpUser):
    """Asks for profiles, each of which takes one call to the upstream service, or three at once."""

    by_name = True
    wait_time = between(0.3, 0.8)

    def get(self, template: str) -> None:
        """Request a route of a user's."""
        self.client.get(template.format(user_id=random.randint(1, USERS)), name=template)

    @task(6)
    def read_a_profile(self) -> None:
        """Await the call, through a shared client."""
        self.get("/profile/{user_id}")

    @task(4)
    def read_it_in_a_thread(self) -> None:
        """Make the call in a worker thread, with requests."""
        self.get("/legacy-profile/{user_id}")

    @task(1)
    def read_it_on_the_loop(self) -> None:
        """Make the call with requests inside async def."""
        self.get("/bad-profile/{user_id}")

    @task(2)
    def read_it_with_a_new_client(self) -> None:
        """Make the call with a client that is made for it."""
        self.get("/client-per-request/{user_id}")

    @task(2)
    def read_it_without_a_timeout(self) -> None:
        """Make the call with a client that would wait for ever."""
        self.get("/no-timeout/{user_id}")

    @task(3)
    def read_three_things_at_once(self) -> None:
        """Make three calls at once."""
        self.get("/gathered-profile/{user_id}")
