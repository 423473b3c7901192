"""Sorts finished requests into the run folders, and says in each how complete it is."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from timesplit import runfolder
from timesplit.clocks import Anchor
from timesplit.forwarder.assembly import Finished, Row
from timesplit.forwarder.folder import Folder
from timesplit.forwarder.numbering import Numbering
from timesplit.forwarder.spans import Process
from timesplit.schema import HOSTS

# What no run marks is kept up to this much, the oldest deleted first.
UNCLAIMED_FILES: Final = 500
UNCLAIMED_BYTES: Final = 64 << 20
ROUTES: Final = 1_000  # distinct ones of a service; the rest is `other`


class Columns:
    """The run folders, as far as the forwarder writes them. Not safe for concurrent calls."""

    def __init__(self, root: Path, me: Process, began: Anchor) -> None:
        """Begin; no file is made before there is a row.

        Args:
            root: where run folders lie.
            me: this forwarder; its instance is part of the file names.
            began: when it began, on the clocks of this host.
        """
        self._root, self._me, self._began = root, me, began
        self._folders: dict[bytes, Folder] = {}
        self._unclaimed = Folder(root / runfolder.UNCLAIMED, me.instance)
        self._workers: dict[str, Process] = {}
        self._numbering: dict[str, Numbering] = {}
        self._routes: defaultdict[str, set[str]] = defaultdict(set)
        # By run and instance: what its last row of hosts/ said.
        self._told: dict[tuple[bytes, str], tuple[int | None, ...]] = {}

    def add(self, finished: Iterable[Finished]) -> None:
        """Take finished requests; they are on disk after the next `flush`."""
        finished = list(finished)
        self._find_runs({one.key for one in finished})
        for one in finished:
            if one.server:
                self._limit_routes(one.server)
            self._folders.get(one.key, self._unclaimed).add(one)

    def flush(
        self, now: int, made: Mapping[str, int], status: Mapping[str, Any], *, last: bool = False
    ) -> None:
        """Write what waits, and the counts that have changed.

        Args:
            now: UTC nanoseconds.
            made: by instance, the server spans made by workers that have ended.
            status: this forwarder's settings and counts, but for what is counted here.
            last: whether the forwarder ends now.
        """
        for key, folder in [*self._folders.items(), (None, self._unclaimed)]:
            for one in folder.write():
                self._number(one, key)
        for instance, numbering in self._numbering.items():
            numbering.made = made.get(instance)
        for key, folder in self._folders.items():
            self._write_hosts(key, folder, now, status, last=last)
        _delete_oldest(self._unclaimed.path)

    @property
    def requests_not_written(self) -> int:
        """Requests taken that are not on disk."""
        folders = [*self._folders.values(), self._unclaimed]
        return sum(folder.received - folder.written for folder in folders)

    def _find_runs(self, keys: set[bytes]) -> None:
        # One look into the root for all keys together: each unmarked request has a key of its own.
        if keys - self._folders.keys():
            for path in runfolder.runs(self._root):
                key = runfolder.RunFolder(path).key
                self._folders.setdefault(key, Folder(path, self._me.instance))

    def _limit_routes(self, row: Row) -> None:
        known, route = self._routes[row["service"]], row["http_route"]
        if route is None or route in known:
            return
        if len(known) < ROUTES:
            known.add(route)
        else:
            row["http_route"] = "other"

    def _number(self, one: Finished, key: bytes | None) -> None:
        worker = one.worker
        self._workers[worker.instance] = worker
        if worker.instance not in self._numbering:
            # Of a worker that is older than this forwarder, the first spans went elsewhere.
            from_start = worker.anchor is not None and worker.anchor.utc >= self._began.utc
            self._numbering[worker.instance] = Numbering(from_start=from_start)
        self._numbering[worker.instance].note(one.seq, key)

    def _write_hosts(
        self, key: bytes, folder: Folder, now: int, status: Mapping[str, Any], *, last: bool
    ) -> None:
        if not folder.received:
            return
        rows: list[Row] = []
        news: dict[tuple[bytes, str], tuple[int | None, ...]] = {}
        for instance, numbering in self._numbering.items():
            count = numbering.count(key)
            told = (count.written, count.forwarded, count.dropped)
            if count.forwarded and self._told.get((key, instance)) != told:
                worker = self._workers[instance]
                settings = {"traces": "otel", "armed": sorted(worker.armed)}
                rows.append(self._host_row(worker, "worker", told, settings, now))
                news[key, instance] = told
        status = {**status, "requests_not_written": self.requests_not_written}
        mine = (folder.received, folder.written, folder.received - folder.written)
        if last or self._told.get((key, self._me.instance)) != mine:
            rows.append(self._host_row(self._me, "forwarder", mine, status, now))
            news[key, self._me.instance] = mine
        if folder.append(HOSTS, rows):
            self._told |= news

    def _host_row(
        self,
        process: Process,
        role: str,
        told: tuple[int | None, int, int | None],
        settings: Mapping[str, Any],
        now: int,
    ) -> Row:
        # The anchor by which its times were converted, carried on to now: so that the last row can be told.
        anchor = process.anchor or self._began
        written, forwarded, dropped = told
        return {
            "instance": process.instance,
            "role": role,
            "pid": process.pid,
            "host": process.host or self._me.host,
            "boot_id": process.boot_id or self._me.boot_id,
            "service": process.service,
            "monotonic": anchor.to_monotonic(now),
            "utc": now,
            "written": written,
            "forwarded": forwarded,
            "dropped": dropped,
            "versions": process.versions or None,
            "configuration": json.dumps(settings),
        }


def _delete_oldest(unclaimed: Path) -> None:
    files = [(file.stat(), file) for file in unclaimed.glob("*/*.parquet")]
    files.sort(key=lambda one: one[0].st_mtime_ns)
    size = sum(stat.st_size for stat, _ in files)
    while len(files) > UNCLAIMED_FILES or size > UNCLAIMED_BYTES:
        stat, file = files.pop(0)
        size -= stat.st_size
        file.unlink(missing_ok=True)
