"""One folder that the forwarder writes to: a run's, or the one of requests that no run marks."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from timesplit.forwarder.assembly import Finished, Row
from timesplit.runfolder import TableWriter
from timesplit.schema import SERVER, STREAMS, Table

log = logging.getLogger(__name__)

ROWS_HELD: Final = 200_000  # of a table that cannot be written; beyond it the oldest are dropped, and counted


class Folder:
    """Rows on their way to disk. What cannot be written now (a full disk) waits.

    Attributes:
        path: the folder.
        received: requests taken.
        written: of these, on disk.
    """

    def __init__(self, path: Path, writer: str, rows_held: int = ROWS_HELD) -> None:
        """Begin; the folder is made with the first row.

        Args:
            path: the folder.
            writer: instance of this process; it becomes part of the file names.
            rows_held: how many rows wait at most.
        """
        self.path = path
        self.received = 0
        self.written = 0
        self._writer, self._rows_held = writer, rows_held
        self._writers: dict[str, TableWriter] = {}
        # Each request is with one of its rows, so that it is counted once.
        self._waiting: dict[Table, list[tuple[Row, Finished | None]]] = {SERVER: [], STREAMS: []}
        self._failing = False

    def add(self, finished: Finished) -> None:
        """Take a request, to be written by the next `write`."""
        self.received += 1
        if finished.server is not None:
            self._waiting[SERVER].append((finished.server, finished))
        if finished.stream is not None:
            counted = finished if finished.server is None else None
            self._waiting[STREAMS].append((finished.stream, counted))

    def write(self) -> Iterator[Finished]:
        """Write what waits, and yield the requests that are on disk now."""
        for table, waiting in self._waiting.items():
            if self.append(table, [row for row, _ in waiting]):
                written = [one for _, one in waiting if one]
                waiting.clear()
                self.written += len(written)
                yield from written
            else:
                del waiting[: -self._rows_held]

    def append(self, table: Table, rows: Sequence[Row] | pa.Table) -> bool:
        """Write rows to a table, and tell whether that worked."""
        if not len(rows):
            return True
        try:
            if table.name not in self._writers:
                self._writers[table.name] = TableWriter(self.path, table, self._writer)
            writer = self._writers[table.name]
            if isinstance(rows, pa.Table):
                writer.write(rows)
            else:
                writer.write_rows(rows)
        except OSError as error:
            if not self._failing:
                log.error("%s cannot be written (%s); its rows wait", self.path, error)
            self._failing = True
            return False
        self._failing = False
        return True
