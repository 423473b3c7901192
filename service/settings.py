"""The service's settings: environment variables, each described in docs/settings.md."""

import difflib
import os
from typing import Any, TypeVar

from pydantic import Field, HttpUrl, PostgresDsn, RedisDsn, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

# A misspelt setting is ignored in silence, and an experiment then measures something else.
_LIKELY_MISSPELT = 0.92


def _seconds(default: float, description: str, *, most: float = 3600) -> Any:
    return Field(default, gt=0, le=most, allow_inf_nan=False, description=description)


def _number(default: int, description: str, *, least: int = 1, most: int = 1000) -> Any:
    return Field(default, ge=least, le=most, description=description)


class Settings(BaseSettings):
    """What can be set, as environment variables of the same names in capitals. Durations are in seconds."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    database_url: PostgresDsn = Field(description="PostgreSQL: `postgresql://user:password@host:port/name`")
    cache_url: RedisDsn = Field(description="Valkey or Redis: `redis://host:port/0`")
    upstream_url: HttpUrl = Field(description="the upstream service: `http://host:port`")

    web_concurrency: int = _number(1, "workers of gunicorn")
    worker_timeout: int = _number(60, "a worker whose event loop is stuck for so long is killed", most=3600)
    graceful_timeout: int = _number(30, "a worker told to stop has so long to end what it began", most=3600)
    keep_alive: int = _number(
        75, "an idle connection is kept so long: longer than clients keep it", most=3600
    )
    backlog: int = _number(2048, "connections that may wait in the kernel to be accepted", most=65535)
    max_body_size: int = _number(65536, "largest request body and WebSocket message, in bytes", most=2**30)
    thread_tokens: int = _number(
        40, "calls that a worker runs in threads at once: `def` routes, offloaded calls"
    )

    database_pool_size: int = _number(10, "connections that each pool of a worker keeps open")
    database_max_overflow: int = _number(5, "connections that a pool opens beyond that when busy", least=0)
    database_pool_timeout: float = _seconds(10, "a request waits so long for a connection, then gets 503")
    database_pool_pre_ping: bool = Field(
        default=False,
        description="test each connection before use; costs a round trip, survives a database restart",
    )
    database_connect_timeout: float = _seconds(5, "opening a connection may take so long")
    database_statement_timeout: float = _seconds(10, "the database cancels a statement after so long")

    cache_timeout: float = _seconds(0.5, "a cache command may take so long; then the database is asked")
    cache_connections: int = _number(50, "connections that a worker opens to the cache")
    cache_ttl: float = _seconds(60, "a cached user is kept so long", most=86400)

    upstream_timeout: float = _seconds(
        2, "getting a connection, connecting, and each read or write may take so long"
    )
    upstream_connections: int = _number(100, "connections that a worker opens to the upstream service")

    job_concurrency: int = _number(10, "jobs that a job worker runs at once")
    job_max_attempts: int = _number(4, "a job that fails so often becomes a dead letter", most=100)
    job_retry_delay: float = _seconds(0.2, "pause before the first retry; doubles with each further one")
    job_heartbeat: float = _seconds(1, "a job worker shows that it lives so often")
    job_stalled_after: float = _seconds(4, "jobs of a worker without heartbeat for so long are run again")

    @field_validator("job_stalled_after")
    @classmethod
    def _outlasts_heartbeat(cls, value: float, info: ValidationInfo) -> float:
        heartbeat = info.data.get("job_heartbeat", 0)
        if value < 2 * heartbeat:
            raise ValueError(f"must be at least twice JOB_HEARTBEAT ({heartbeat:g})")
        return value


class SettingsError(SystemExit):
    """The environment does not fit; the message lists all problems.

    A SystemExit, so that whichever server starts the service prints that message alone and ends with code 1.
    """


SettingsModel = TypeVar("SettingsModel", bound=BaseSettings)


def read_settings(model: type[SettingsModel]) -> SettingsModel:
    """Read settings from the environment.

    Raises:
        SettingsError: something is missing, wrong or misspelt.
    """
    misspelt = _misspelt(model)
    try:
        settings = model()
    except ValidationError as error:
        problems = [_describe(model, problem) for problem in error.errors()] + misspelt
    else:
        problems = misspelt
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise SettingsError(f"The settings do not fit (see docs/settings.md):\n{listed}")
    return settings


def variable(model: type[BaseSettings], field: str) -> str:
    """Return the environment variable of a setting."""
    return f"{model.model_config.get('env_prefix', '')}{field}".upper()


def _describe(model: type[BaseSettings], problem: ErrorDetails) -> str:
    field = str(problem["loc"][0])
    name = variable(model, field)
    if problem["type"] == "missing":
        return f"{name}: not set; {model.model_fields[field].description}"
    # URLs carry passwords, and messages end in logs.
    value = "…" if field.endswith("_url") else str(problem["input"])
    return f"{name}={value}: {problem['msg'].removeprefix('Value error, ')}"


def _misspelt(model: type[BaseSettings]) -> list[str]:
    names = [variable(model, field) for field in model.model_fields]
    unknown = sorted(os.environ.keys() - set(names))
    close = {name: difflib.get_close_matches(name, names, n=1, cutoff=_LIKELY_MISSPELT) for name in unknown}
    return [f"{name}: no such setting; {match[0]} is meant?" for name, match in close.items() if match]
