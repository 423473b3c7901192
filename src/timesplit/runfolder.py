"""A run is a folder: its place, its `run.json`, and its tables as folders of Parquet files.

Everything that measures writes here, everything that reads a result reads here. Files are written aside and
renamed into place, so a reader never sees half a file and a killed writer loses only what it had not yet
written. Folders are 0700, files 0600, and nothing is opened through a symbolic link.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from timesplit.errors import RunFolderError
from timesplit.schema import SCHEMA_VERSION, Kind, Table

FLUSH_SECONDS = 2.0  # half of the 5 s that a killed writer may lose at most, and then some
UNCLAIMED = "unclaimed"  # where requests that no run marks are kept
LATEST = "latest"
_NAME = re.compile(r"\d{8}T\d{6}Z-[A-Za-z0-9._-]+-([0-9a-f]{16})\Z")
_ARROW: dict[Kind, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "text": pa.string(),
    "trace_id": pa.binary(16),
    "span_id": pa.binary(8),
}


def runs_root() -> Path:
    """Return the folder in which runs lie: TIMESPLIT_RUNS, or `./runs`."""
    return Path(os.environ.get("TIMESPLIT_RUNS") or "runs").absolute()


@cache
def arrow_schema(table: Table) -> pa.Schema:
    """Return the Arrow schema of a table, the version of the records in its metadata."""
    fields = [pa.field(c.name, _ARROW[c.kind], nullable=c.nullable) for c in table.columns]
    return pa.schema(fields, metadata={"timesplit.schema": str(SCHEMA_VERSION)})


def empty_table(table: Table) -> pa.Table:
    """Return a table without rows, of the right columns."""
    return arrow_schema(table).empty_table()


class TableWriter:
    """One process's part of a table: a series of Parquet files that no other process writes.

    Not safe for concurrent calls; a process makes one per table and calls it from one thread.
    """

    def __init__(self, run: Path, table: Table, writer: str) -> None:
        """Make the table's folder if need be.

        Args:
            run: the run folder.
            table: which table.
            writer: instance of the writing process; it becomes part of the file names.
        """
        self._table = table
        self._folder = _private_folder(run / table.name)
        self._prefix = f"{writer}-{secrets.token_hex(2)}"
        self._files = 0
        self.rows = 0

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, one mapping per row; a column that is left out is NULL."""
        if rows:
            self.write(pa.Table.from_pylist(list(rows), schema=arrow_schema(self._table)))

    def write(self, rows: pa.Table) -> None:
        """Write an Arrow table as the next file, if it has rows.

        Raises:
            pyarrow.ArrowInvalid: a column is missing, of another type, or NULL where it must not be.
        """
        if rows.num_rows == 0:
            return
        rows = rows.cast(arrow_schema(self._table))
        rows.validate()
        path = self._folder / f"{self._prefix}-{self._files:06d}.parquet"
        aside = path.with_suffix(".tmp")
        with os.fdopen(_private_file(aside), "wb") as file:
            pq.write_table(rows, file, compression="zstd")
        aside.rename(path)
        self._files += 1
        self.rows += rows.num_rows


class RunFolder:
    """A run's folder: where its tables are and what its `run.json` says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, root: Path, scenario: str, key: bytes) -> "RunFolder":
        """Make the folder of a run that begins now, and point `latest` at it.

        Args:
            root: where runs lie; made if it is not there.
            scenario: name of the scenario; characters that do not belong in a name become `-`.
            key: the run's key, 8 bytes.
        """
        _private_folder(root)
        began = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", scenario).strip("-.") or "run"
        path = _private_folder(root / f"{began}-{name}-{key.hex()}")
        _point_latest(root, path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open a run that is there, and check that it can be read.

        Raises:
            RunFolderError: there is no run, its `run.json` is cut short, or its schema is another one.
        """
        run = cls(path.resolve())
        version = run.meta().get("schema")
        if version != SCHEMA_VERSION:
            raise RunFolderError(
                f"{path}: its records have schema {version}, this timesplit reads {SCHEMA_VERSION}; "
                "use the timesplit that wrote it, or run the scenario again"
            )
        return run

    @property
    def key(self) -> bytes:
        """The run's key, 8 bytes."""
        return bytes.fromhex(self.path.name.rpartition("-")[2])

    def meta(self) -> dict[str, Any]:
        """Read `run.json`.

        Raises:
            RunFolderError: it is missing or not JSON.
        """
        file = self.path / "run.json"
        try:
            meta = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise RunFolderError(f"{self.path}: not a run folder, it has no run.json") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{file}: cannot be read ({error}); the run is cut short") from None
        if not isinstance(meta, dict):
            raise RunFolderError(f"{file}: holds no JSON object; the run is cut short")
        return meta

    def write_meta(self, meta: Mapping[str, Any]) -> None:
        """Write `run.json` anew, with the schema's version."""
        self.write_text("run.json", json.dumps({"schema": SCHEMA_VERSION, **meta}, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the run, aside and renamed into place, and return its path."""
        path = self.path / name
        aside = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
        with os.fdopen(_private_file(aside), "w", encoding="utf-8") as file:
            file.write(text)
        aside.rename(path)
        return path

    def files(self, table: Table) -> list[Path]:
        """Return the table's Parquet files, oldest name first; empty if nothing was recorded."""
        return sorted((self.path / table.name).glob("*.parquet"))

    def clear(self, table: Table) -> None:
        """Remove a table that is derived from the others, so that it can be written anew."""
        for file in self.files(table):
            file.unlink()


def find_run(root: Path, key: bytes) -> Path | None:
    """Return the folder of the run with this key, or None if there is none."""
    return next((path for path in runs(root) if path.name.endswith(key.hex())), None)


def runs(root: Path) -> Iterator[Path]:
    """Yield the run folders below `root`, oldest first."""
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if _NAME.match(path.name) and not path.is_symlink())


def _point_latest(root: Path, run: Path) -> None:
    aside = root / f".{LATEST}.{secrets.token_hex(4)}"
    aside.symlink_to(run.name)
    aside.rename(root / LATEST)


def _private_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_symlink():
        raise RunFolderError(f"{path}: is a symbolic link; run folders are not written through links")
    return path


def _private_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
