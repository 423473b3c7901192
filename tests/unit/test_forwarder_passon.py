import pytest

from timesplit.errors import UsageError
from timesplit.forwarder.passon import pass_on_from

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
