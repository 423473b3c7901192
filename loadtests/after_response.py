"""Work after the response: the client has its answer, and the worker is not done."""

from locust import between, task

from timesplit.loadgen import FastHttpUser


class AfterResponseUser(FastHttpUser):
    """Leaves work behind with most requests, and measures a route that leaves none beside it."""

    by_name = True
    wait_time = between(0.2, 0.4)

    @task(2)
    def notify(self) -> None:
        """Have a message sent by a background task."""
        self.client.post("/notify", json={"message": "hello", "seconds": 0.05})

    @task(2)
    def leave_a_dependency(self) -> None:
        """Use a dependency that takes 50 ms to end."""
        self.client.get("/teardown")

    @task(1)
    def compute(self) -> None:
        """Ask for what leaves nothing behind."""
        self.client.get("/cpu-async")
