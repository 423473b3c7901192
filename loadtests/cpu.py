"""CPU work: short enough for the request path, and too long for it."""

from locust import between, task

from timesplit.loadgen import FastHttpUser


class CpuUser(FastHttpUser):
    """Mostly asks for a short computation; now and then for one of 50 ms, which all others wait for."""

    by_name = True
    wait_time = between(0.1, 0.3)

    @task(10)
    def compute_in_a_thread(self) -> None:
        """Compute shortly, in a worker thread."""
        self.client.get("/cpu-def")

    @task(10)
    def compute_on_the_loop(self) -> None:
        """Compute shortly, on the event loop."""
        self.client.get("/cpu-async")

    @task(1)
    def compute_for_long(self) -> None:
        """Compute for 50 ms on the event loop."""
        self.client.get("/cpu-in-path?milliseconds=50")
