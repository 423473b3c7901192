"""The real servers that integration tests talk to, one of each for the whole session."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from timesplit.lab.postgres import start_postgres
from timesplit.lab.processes import Processes
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
