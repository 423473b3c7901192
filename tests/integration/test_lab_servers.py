import os
import signal
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from timesplit.errors import StartError
from timesplit.lab.postgres import start_postgres
from timesplit.lab.processes import Processes


def test_the_database_is_a_postgresql_18_reached_by_tcp(postgres: str) -> None:
    with psycopg.connect(postgres) as connection:
        version, address = connection.execute(
            "select current_setting('server_version_num')::int, host(inet_server_addr())"
        ).fetchone() or (0, "")

    assert version >= 180000
    assert address == "127.0.0.1"


def test_the_cache_answers_and_keeps_a_value(valkey: str) -> None:
    with redis.Redis.from_url(valkey) as client:
        client.set("key", "value")

        assert client.get("key") == b"value"


def test_a_killed_database_starts_again_with_its_data(processes: Processes) -> None:
    folder = processes.state / "crash"
    with psycopg.connect(start_postgres(processes, folder)) as connection:
        connection.execute("create table kept (id int)")
        connection.commit()
        leftover = next(folder.glob("*/postmaster.pid"))
        pid = int(leftover.read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
    psutil.Process(pid).wait(10)
    # A process id that has become another process's meanwhile.
    leftover.write_text(leftover.read_text().replace(str(pid), str(os.getpid()), 1))

    with psycopg.connect(start_postgres(processes, folder)) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_a_database_that_no_lab_watches_any_more_is_ended_first(processes: Processes) -> None:
    folder = processes.state / "left"
    with psycopg.connect(start_postgres(processes, folder)) as connection:
        connection.execute("select 1")

    with psycopg.connect(start_postgres(processes, folder)) as again:
        again.execute("select 1")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user cannot make a folder of root's own")
def test_the_database_runs_in_a_folder_that_only_root_can_enter(processes: Processes) -> None:
    closed = processes.state / "closed"
    closed.mkdir(mode=0o700)

    with psycopg.connect(start_postgres(processes, closed / "postgres")) as connection:
        connection.execute("select 1")

    assert closed.stat().st_mode & 0o777 == 0o700


def test_without_its_binaries_the_error_says_what_to_do(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timesplit.lab.postgres.find_spec", lambda name: None)

    with pytest.raises(StartError, match=r"no PostgreSQL server.*timesplit\[service\].*DATABASE_URL"):
        start_postgres(processes, tmp_path)
