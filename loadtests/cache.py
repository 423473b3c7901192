"""The cache: a read that is mostly a hit, and the same read without it."""

import random

from locust import between, task

from timesplit.loadgen import FastHttpUser

USERS = 10_000  # as the demo service is seeded
POPULAR = 200  # of them, who are asked for again and again


class CacheUser(FastHttpUser):
    """Reads popular users through the cache, rare ones through it in vain, and some past it."""

    by_name = True
    wait_time = between(0.1, 0.3)

    @task(8)
    def read_a_popular_user(self) -> None:
        """Read what is probably cached."""
        self.read_cached(random.randint(1, POPULAR))

    @task(1)
    def read_a_rare_user(self) -> None:
        """Read what is probably not cached."""
        self.read_cached(random.randint(POPULAR + 1, USERS))

    @task(2)
    def read_past_the_cache(self) -> None:
        """Read the same from the database."""
        self.client.get(f"/users/{random.randint(1, POPULAR)}", name="/users/{user_id}")

    def read_cached(self, user_id: int) -> None:
        """Read a user through the cache."""
        self.client.get(f"/cached-users/{user_id}", name="/cached-users/{user_id}")
