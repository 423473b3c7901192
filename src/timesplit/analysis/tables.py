"""A run's tables as Ibis tables, and an embedded DuckDB that runs what is asked of them.

Expressions are built on unbound tables, so another engine can run them unchanged. They also keep to the part
of Ibis that works on DuckDB 1.5 and 2.0 alike: Ibis 12 reads a bound table, and streams a result, by calls that
DuckDB 2.0 deprecates or no longer has.
"""

import glob
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from timesplit.runfolder import RunFolder, arrow_schema, empty_table
from timesplit.schema import Kind, Table

BATCH_ROWS: Final = 100_000  # of a streamed result: about 40 MB; the engine holds several
_ENGINE: Final = {
    "memory_limit": "1200MB",  # the rest of the 2 GiB that a report may take is numpy's and Arrow's
    "preserve_insertion_order": False,
    # A report works offline: no extension is fetched, whatever a query asks for.
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_IBIS: Final[dict[Kind, str]] = {
    "int": "int64",
    "float": "float64",
    "bool": "boolean",
    "text": "string",
    "trace_id": "binary",
    "span_id": "binary",
}


class RunTables:
    """The tables of one run, readable by Ibis expressions.

    Attributes:
        run: the run folder.
        unreadable: one line for each Parquet file that was left out, and why.
    """

    def __init__(self, run: RunFolder, *, thorough: bool = False) -> None:
        """Start the engine.

        Args:
            run: the run folder.
            thorough: read every file to its end before use, and leave out those that cannot be read. Costs a
                pass over the data; without it only the footers are checked.
        """
        self.run = run
        self.unreadable: list[str] = []
        self._thorough = thorough
        self._declared: dict[str, ibis.Table] = {}
        # What does not fit into memory goes beside the data, not into the current folder or a memory file system.
        self._ibis = ibis.duckdb.connect(temp_directory=str(run.path / ".spill"), **_ENGINE)

    def __enter__(self) -> "RunTables":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ibis.disconnect()

    def table(self, table: Table) -> ibis.Table:
        """Return a table of the run; without rows where nothing was recorded."""
        if table.name not in self._declared:
            files = [file for file in self.run.files(table) if self._is_readable(file, table)]
            self._declare(table, files)
        return self._declared[table.name]

    def add(self, name: str, rows: pa.Table) -> ibis.Table:
        """Make an Arrow table known under a name, and return it."""
        self._ibis.con.register(name, rows)
        return ibis.table(ibis.Schema.from_pyarrow(rows.schema), name=name)

    def define(self, name: str, expression: ibis.Table) -> ibis.Table:
        """Make an expression known under a name, and return it: what is built on it is translated without it."""
        self._ibis.con.execute(f'CREATE OR REPLACE VIEW "{name}" AS {self._ibis.compile(expression)}')
        return ibis.table(expression.schema(), name=name)

    def fetch(self, expression: ibis.Table) -> pa.Table:
        """Run an expression and return its rows."""
        rows: pa.Table = self._ibis.con.sql(self._ibis.compile(expression)).to_arrow_table()
        # The engine adds integers up to a wider type, which Arrow knows only as decimal.
        promised = expression.schema().to_pyarrow()
        return rows.cast(pa.schema([(field.name, field.type) for field in promised]))

    def stream(self, expression: ibis.Table) -> Iterator[pa.Table]:
        """Run an expression and yield its rows piece by piece; nothing else can be asked until the last."""
        for batch in self._ibis.con.sql(self._ibis.compile(expression)).to_arrow_reader(BATCH_ROWS):
            yield pa.Table.from_batches([batch])

    def _declare(self, table: Table, files: list[Path]) -> None:
        if files:
            # The engine expands wildcards, and a folder's name may hold some.
            paths = ", ".join("'" + glob.escape(str(file)).replace("'", "''") + "'" for file in files)
            columns = ", ".join(f'"{name}"' for name in table.column_names())
            view = f'CREATE VIEW "{table.name}" AS SELECT {columns} FROM read_parquet([{paths}])'
            self._ibis.con.execute(view)
        else:
            self._ibis.con.register(table.name, empty_table(table))
        columns_of = {column.name: _IBIS[column.kind] for column in table.columns}
        self._declared[table.name] = ibis.table(columns_of, name=table.name)

    def _is_readable(self, file: Path, table: Table) -> bool:
        try:
            self._check(file, table)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.unreadable.append(f"{table.name}/{file.name}: left out, it cannot be read ({reason})")
            return False
        return True

    def _check(self, file: Path, table: Table) -> None:
        with pq.ParquetFile(file) as parquet:
            missing = set(table.column_names()) - set(parquet.schema_arrow.names)
            if missing:
                raise pa.ArrowInvalid(f"column {min(missing)} is missing")
            expected = arrow_schema(table)
            for name in table.column_names():
                if parquet.schema_arrow.field(name).type != expected.field(name).type:
                    raise pa.ArrowInvalid(f"column {name} is {parquet.schema_arrow.field(name).type}")
            if self._thorough:
                for _ in parquet.iter_batches():
                    pass
