"""The database: sessions of three kinds, statements that take long, connections that are held, N+1."""

import random
import uuid

from locust import between, task

from timesplit.loadgen import FastHttpUser

USERS = 10_000  # as the demo service is seeded


class DatabaseUser(FastHttpUser):
    """Mostly reads one row; now and then does what keeps a connection from others."""

    by_name = True
    wait_time = between(0.1, 0.5)

    def get(self, template: str) -> None:
        """Request a route of a user's."""
        self.client.get(template.format(user_id=random.randint(1, USERS)), name=template)

    @task(8)
    def read(self) -> None:
        """Read one row through an async session."""
        self.get("/users/{user_id}")

    @task(4)
    def read_in_a_thread(self) -> None:
        """Read one row through a sync session, in a worker thread."""
        self.get("/sync-users/{user_id}")

    @task(4)
    def read_on_the_loop(self) -> None:
        """Read one row through a sync session that blocks the event loop."""
        self.get("/hidden-sync-users/{user_id}")

    @task(2)
    def list_orders_one_by_one(self) -> None:
        """Read orders with a statement for each."""
        self.get("/users/{user_id}/orders-n-plus-one")

    @task(2)
    def list_orders_at_once(self) -> None:
        """Read the same orders with one statement."""
        self.get("/users/{user_id}/orders-joined")

    @task(2)
    def write(self) -> None:
        """Create a user."""
        unique = uuid.uuid4().hex
        self.client.post("/users", json={"email": f"{unique}@example.com", "name": "New User"})

    @task(1)
    def wait_for_a_statement(self) -> None:
        """Run a statement of 100 ms."""
        self.client.get("/slow-query?seconds=0.1")

    @task(1)
    def hold_a_transaction(self) -> None:
        """Keep a connection for 100 ms in which the database has nothing to do."""
        self.client.get("/held-transaction?seconds=0.1")
