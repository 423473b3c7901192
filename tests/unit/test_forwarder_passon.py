from threading import Event

import httpx
import pytest

from timesplit.errors import UsageError
from timesplit.forwarder.passon import Body, PassOn, pass_on_from

OWN = ("127.0.0.1", 4318)
GENERAL, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


def endpoints(environment: dict[str, str]) -> object:
    pass_on = pass_on_from(environment, OWN)
    if pass_on is None:
        return None
    pass_on.stop(1)
    return pass_on.status()["pass_on"]


def test_where_nothing_is_said_nothing_is_passed_on() -> None:
    assert endpoints({GENERAL: ""}) is None


def test_one_endpoint_is_for_all_signals() -> None:
    assert endpoints({GENERAL: "http://collector:4318/"}) == {
        "traces": "http://collector:4318/v1/traces",
        "metrics": "http://collector:4318/v1/metrics",
        "logs": "http://collector:4318/v1/logs",
    }


def test_the_endpoint_of_a_signal_is_taken_as_it_is() -> None:
    assert endpoints({TRACES: "https://collector/otlp"}) == {"traces": "https://collector/otlp"}


def test_credentials_are_not_shown() -> None:
    assert endpoints({TRACES: "https://user:word@collector/otlp?token=word"}) == {
        "traces": "https://collector/otlp"
    }


@pytest.mark.parametrize(
    "url", ["collector:4318", "grpc://collector:4317", "http://", "http://[::1", "http://a:b"]
)
def test_what_is_no_http_address_is_said_so(url: str) -> None:
    with pytest.raises(UsageError, match=TRACES):
        endpoints({TRACES: url})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_the_forwarder_never_feeds_itself(host: str) -> None:
    with pytest.raises(UsageError, match="is this forwarder itself"):
        endpoints({GENERAL: f"http://{host}:4318"})

    assert endpoints({GENERAL: f"http://{host}:4319"})


def test_a_certificate_that_is_not_there_is_said_so() -> None:
    with pytest.raises(UsageError, match="OTEL_EXPORTER_OTLP_CERTIFICATE"):
        endpoints({TRACES: "https://collector/", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such/file"})


def test_what_waits_is_bounded_and_what_does_not_fit_is_dropped_and_counted() -> None:
    asked, answer = Event(), Event()

    def collector(request: httpx.Request) -> httpx.Response:
        asked.set()
        answer.wait(10)
        return httpx.Response(200)

    client = httpx.Client(transport=httpx.MockTransport(collector))
    pass_on = PassOn({"traces": "http://collector/"}, client, queue_bytes=10)
    for items in (1, 2, 4):
        pass_on.offer(Body("traces", b"12345", None, items))
    asked.wait(10)
    answer.set()
    pass_on.stop(10)

    assert (pass_on.passed, pass_on.dropped) == (3, 4)


def test_a_signal_that_nobody_wants_is_neither_kept_nor_counted() -> None:
    client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200)))
    pass_on = PassOn({"traces": "http://collector/"}, client)
    pass_on.offer(Body("logs", b"12345", None, 1))
    pass_on.stop(10)

    assert (pass_on.passed, pass_on.dropped) == (0, 0)
