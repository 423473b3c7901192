"""A realistic mix of what users do; the one class that runs where nobody names any."""

import random
import uuid

from locust import between, task

from timesplit.loadgen import FastHttpUser

USERS = 10_000  # as the demo service is seeded
POPULAR = 200  # of them, who are asked for again and again


class MixedUser(FastHttpUser):
    """Mostly reads, sometimes writes, now and then leaves work behind. Each pauses for 0.2 s on average."""

    wait_time = between(0.1, 0.3)

    def get(self, template: str, users: int = USERS) -> None:
        """Request a route of a user's."""
        self.client.get(template.format(user_id=random.randint(1, users)), name=template)

    @task(30)
    def read(self) -> None:
        """Read a user."""
        self.get("/users/{user_id}")

    @task(30)
    def read_cached(self) -> None:
        """Read a user who is probably cached."""
        self.get("/cached-users/{user_id}", POPULAR)

    @task(10)
    def read_in_a_thread(self) -> None:
        """Read a user through a library without an async API."""
        self.get("/sync-users/{user_id}")

    @task(10)
    def read_profile(self) -> None:
        """Read a profile, which takes a call to another service."""
        self.get("/profile/{user_id}")

    @task(2)
    def read_gathered_profile(self) -> None:
        """Read a profile that takes three calls at once."""
        self.get("/gathered-profile/{user_id}")

    @task(6)
    def list_orders(self) -> None:
        """Read a user's orders."""
        self.get("/users/{user_id}/orders-joined")

    @task(4)
    def write(self) -> None:
        """Create a user."""
        unique = uuid.uuid4().hex
        self.client.post("/users", json={"email": f"{unique}@example.com", "name": "New User"})

    @task(3)
    def order_work(self) -> None:
        """Put a job on the queue, and look how far it is."""
        answer = self.client.post("/jobs", json={"seconds": 0.05})
        if answer.status_code == 202:
            self.client.get(f"/jobs/{answer.json()['job_id']}", name="/jobs/{job_id}")

    @task(3)
    def notify(self) -> None:
        """Have a message sent after the response."""
        self.client.post("/notify", json={"message": "hello"})

    @task(2)
    def leave_a_dependency(self) -> None:
        """Use a dependency that takes its time to end."""
        self.client.get("/teardown")
