"""Waiting: one delay, waited for in five ways by users who do not know of one another."""

from locust import between, task

from timesplit.loadgen import FastHttpUser


class WaitingUser(FastHttpUser):
    """Asks for the same 50 ms in each of the ways; the one that blocks the event loop is felt in all."""

    by_name = True
    wait_time = between(0.5, 1.0)

    @task(4)
    def await_a_delay(self) -> None:
        """Await it on the event loop."""
        self.client.get("/async-sleep")

    @task(1)
    def block_the_event_loop(self) -> None:
        """Block the event loop with it."""
        self.client.get("/blocking-in-async")

    @task(4)
    def block_a_thread(self) -> None:
        """Block a worker thread with it."""
        self.client.get("/sync-blocking")

    @task(4)
    def offload_it(self) -> None:
        """Block a worker thread on purpose, from an async route."""
        self.client.get("/offloaded-blocking")

    @task(4)
    def wait_in_a_dependency(self) -> None:
        """Block a worker thread before an async route."""
        self.client.get("/sync-dependency")
