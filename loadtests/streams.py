"""Streams: tokens that come one by one, and WebSockets that are echoed."""

from locust import between, task

from timesplit.loadgen import FastHttpUser

MESSAGES = 20


class EventStreamUser(FastHttpUser):
    """Reads a token stream to its end, as a chat page does."""

    by_name = True
    wait_time = between(0.5, 1.5)

    @task
    def read_tokens(self) -> None:
        """Read 20 tokens, 50 ms apart."""
        for _ in self.events(f"/stream/tokens?tokens={MESSAGES}&interval=0.05", name="/stream/tokens"):
            pass


class WebSocketUser(FastHttpUser):
    """Sends messages over a WebSocket and waits for each to come back."""

    by_name = True
    wait_time = between(0.5, 1.5)

    @task
    def talk(self) -> None:
        """Send 20 messages, each after the echo of the one before."""
        with self.websocket("/stream/echo") as connection:
            for number in range(MESSAGES):
                connection.send(f"message {number}")
                connection.receive()
