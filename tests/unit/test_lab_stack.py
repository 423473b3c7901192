from pathlib import Path

import pytest

from timesplit.errors import UsageError
from timesplit.lab.run import publishable
from timesplit.lab.stack import ServiceSettings, no_proxy, require_demo_service


@pytest.mark.parametrize(
    ("asked", "environment", "workers"), [(3, "2", "3"), (None, "2", "2"), (None, "", "1"), (None, None, "1")]
)
def test_workers_are_those_asked_for_else_of_the_environment_else_one(
    asked: int | None, environment: str | None, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    if environment is not None:
        monkeypatch.setenv("WEB_CONCURRENCY", environment)

    assert ServiceSettings(workers=asked).variables()["WEB_CONCURRENCY"] == workers


def test_the_traces_are_those_asked_for_else_of_the_environment_else_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TIMESPLIT_TRACES", raising=False)
    assert ServiceSettings().variables()["TIMESPLIT_TRACES"] == "ledger"
    monkeypatch.setenv("TIMESPLIT_TRACES", "off")
    assert ServiceSettings().variables()["TIMESPLIT_TRACES"] == "off"
    assert ServiceSettings(traces="otel").variables()["TIMESPLIT_TRACES"] == "otel"


def test_a_scenarios_environment_reaches_the_service() -> None:
    assert ServiceSettings(environment={"THREAD_TOKENS": "5"}).variables()["THREAD_TOKENS"] == "5"


@pytest.mark.parametrize(
    ("theirs", "ours"), [(None, "127.0.0.1"), ("", "127.0.0.1"), ("intra.net", "intra.net,127.0.0.1")]
)
def test_what_goes_from_piece_to_piece_passes_no_proxy(
    theirs: str | None, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if theirs is not None:
        monkeypatch.setenv("NO_PROXY", theirs)

    assert no_proxy() == {"no_proxy": ours, "NO_PROXY": ours}


def test_outside_the_project_there_is_no_demo_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match=r"no demo service in .*use --host URL"):
        require_demo_service()


def test_secrets_do_not_reach_the_run_folder() -> None:
    variables = {
        "THREAD_TOKENS": "40",
        "WEB_CONCURRENCY": "2",
        "DATABASE_URL": "postgresql://user:pw@127.0.0.1/db",
        "PAYMENT_API_KEY": "sk-1",
        "db_password": "pw",
    }

    assert publishable(variables) == {
        "THREAD_TOKENS": "40",
        "WEB_CONCURRENCY": "2",
        "DATABASE_URL": "postgresql://…@127.0.0.1/db",
        "PAYMENT_API_KEY": "…",
        "db_password": "…",
    }
