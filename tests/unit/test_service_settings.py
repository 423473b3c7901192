import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from service.settings import Settings, SettingsError, read_settings, variable
from service.upstream.behaviour import UpstreamSettings

NEEDED = {
    "DATABASE_URL": "postgresql://user:secret@127.0.0.1:5432/demo",
    "CACHE_URL": "redis://127.0.0.1:6379/0",
    "UPSTREAM_URL": "http://127.0.0.1:9000",
}
DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for model in (Settings, UpstreamSettings):
        for field in model.model_fields:
            monkeypatch.delenv(variable(model, field), raising=False)
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def problems() -> str:
    with pytest.raises(SettingsError) as stopped:
        read_settings(Settings)
    return str(stopped.value)


def test_what_is_needed_is_enough() -> None:
    assert read_settings(Settings).thread_tokens == 40


def test_all_problems_are_in_one_message(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("CACHE_URL")
    environment.setenv("THREAD_TOKENS", "many")
    environment.setenv("DATABASE_POOL_TIMEOUT", "nan")
    environment.setenv("JOB_STALLED_AFTER", "1")
    environment.setenv("DATABASE_POOL_SIZ", "5")

    lines = problems().splitlines()

    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "CACHE_URL",
        "THREAD_TOKENS=many",
        "DATABASE_POOL_TIMEOUT=nan",
        "JOB_STALLED_AFTER=1",
        "DATABASE_POOL_SIZ",
    ]


def test_a_misspelt_setting_is_told_its_name(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("THREAD_TOKEN", "5")

    assert "THREAD_TOKEN: no such setting; THREAD_TOKENS is meant?" in problems()


@pytest.mark.parametrize("name", ["DATABASE_PRIVATE_URL", "UPSTREAM_MEAN", "PATH"])
def test_other_variables_are_left_alone(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv(name, "anything")

    read_settings(Settings)


def test_passwords_stay_out_of_the_message(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DATABASE_URL", "mysql://user:secret@127.0.0.1/demo")

    assert "DATABASE_URL=…" in problems()
    assert "secret" not in problems()


def test_an_empty_variable_counts_as_not_set(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("THREAD_TOKENS", "")

    assert read_settings(Settings).thread_tokens == 40


def test_a_stalled_worker_must_have_missed_two_heartbeats(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("JOB_HEARTBEAT", "2.5")

    environment.setenv("JOB_STALLED_AFTER", "4.9")
    assert "JOB_STALLED_AFTER=4.9: must be at least twice JOB_HEARTBEAT (2.5)" in problems()
    environment.setenv("JOB_STALLED_AFTER", "5")
    assert read_settings(Settings).job_stalled_after == 5


def documented(model: type[BaseSettings]) -> set[tuple[str, str, str]]:
    """The rows that the document should have for a model."""
    rows = set()
    for field, info in model.model_fields.items():
        default = "required" if info.is_required() else f"`{str(info.default).removesuffix('.0').lower()}`"
        rows.add((variable(model, field), default, info.description or ""))
    return rows


def test_the_document_has_each_setting_with_its_default_and_meaning() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)

    assert len(rows) == len(set(rows))
    assert set(rows) == documented(Settings) | documented(UpstreamSettings)
