"""A forwarder and the run folders that it writes, for tests: in this process, which starts and stops it fast."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from timesplit.forwarder.process import Forwarder
from timesplit.runfolder import RunFolder
from timesplit.schema import HOSTS, SERVER, Table


class Forwarding:
    """A root with one run, and a forwarder that writes to it from `start` to `stop`."""

    def __init__(self, root: Path, key: bytes) -> None:
        self.root = root
        self.run = RunFolder.create(root, "test", key)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, port: int = 0) -> str:
        """Start the forwarder, with the environment as it is, and return its URL."""
        forwarder = Forwarder("127.0.0.1", port, self.root, self.root / "journals")
        self._thread = threading.Thread(target=forwarder.run, args=(self._stop,))
        self._thread.start()
        self.pid, self.port = os.getpid(), forwarder.port
        return f"http://127.0.0.1:{forwarder.port}"

    def stop(self) -> None:
        """Stop the forwarder, if it runs: all is on disk then."""
        if self._thread:
            self._stop.set()
            self._thread.join()

    def rows(self, table: Table = SERVER, folder: Path | None = None) -> list[dict[str, Any]]:
        """Return what is on disk, of the run or another folder, in the order in which it was written."""
        files = sorted(((folder or self.run.path) / table.name).glob("*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def hosts(self, role: str) -> list[dict[str, Any]]:
        """Return the last row of each process of that role."""
        rows = sorted(self.rows(HOSTS), key=lambda row: row["monotonic"])
        return list({row["instance"]: row for row in rows if row["role"] == role}.values())

    def configuration(self) -> dict[str, Any]:
        """Return what the forwarder tells of itself."""
        (row,) = self.hosts("forwarder")
        told: dict[str, Any] = json.loads(row["configuration"])
        return told
