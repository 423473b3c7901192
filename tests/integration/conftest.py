"""The real servers that integration tests talk to, one of each for the whole session."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import service.database
from timesplit.lab.forwarding import answers
from timesplit.lab.postgres import start_postgres
from timesplit.lab.processes import Processes, free_port
from timesplit.lab.valkey import start_valkey


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Starts processes that end with the session."""
    # Not tmp_path: where the tests run as root, PostgreSQL's user must be able to reach its data.
    state = Path(tempfile.mkdtemp(prefix="timesplit-tests-"))
    state.chmod(0o711)
    with Processes(state) as processes:
        yield processes
    shutil.rmtree(state)


@pytest.fixture(scope="session")
def postgres(processes: Processes) -> str:
    """URL of an empty PostgreSQL database, password included: a value for DATABASE_URL."""
    return start_postgres(processes, processes.state / "postgres")


@pytest.fixture(scope="session")
def valkey(processes: Processes) -> str:
    """URL of an empty Valkey: a value for CACHE_URL."""
    return start_valkey(processes)


@pytest.fixture(scope="session")
def _seeded(postgres: str) -> str:
    """URL of a database with the demo service's schema and data set, which nobody is connected to."""
    url = _create_database(postgres, "seeded")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DATABASE_URL", url)
        environment.setenv("CACHE_URL", "redis://none")
        environment.setenv("UPSTREAM_URL", "http://none")
        service.database.main(["migrate"])
        service.database.main(["seed"])
    return url


@pytest.fixture(scope="module")
def database(postgres: str, _seeded: str, request: pytest.FixtureRequest) -> str:
    """URL of a seeded database that the tests of a module have for themselves."""
    return _create_database(postgres, request.module.__name__.rpartition(".")[2], template="seeded")


@pytest.fixture(scope="session")
def upstream(processes: Processes) -> str:
    """URL of the upstream service, which behaves as `PUT /behaviour` says."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "service.upstream", "--port", url.rpartition(":")[2]]
    child = processes.start("upstream", command, env={"UPSTREAM_MEAN": "0"})
    child.wait_ready(lambda: answers(f"{url}/healthz"))
    return url


@pytest.fixture(scope="module")
def service_environment(database: str, valkey: str, upstream: str) -> dict[str, str]:
    """Environment of the demo service and its job worker: nothing is traced."""
    needed = {"DATABASE_URL": database, "CACHE_URL": valkey, "UPSTREAM_URL": upstream}
    return {**needed, "TIMESPLIT_TRACES": "off"}


def _create_database(server: str, name: str, template: str = "template1") -> str:
    with psycopg.connect(server, autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    return f"{server.rpartition('/')[0]}/{name}"
