"""What a run says of itself: `run.json`, and the processes in `hosts/` with their clocks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import ibis
import pyarrow as pa
from ibis import _

from timesplit.analysis.samples import SECOND_NS
from timesplit.analysis.summary import Process, RunFacts
from timesplit.analysis.tables import RunTables
from timesplit.clocks import Anchor
from timesplit.errors import RunFolderError
from timesplit.runfolder import RunFolder
from timesplit.schema import CLIENT, HOSTS

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it describes itself.

    Attributes:
        facts: what was run, where and how.
        began: when, on the run's clock: the one that `run.json` was written by.
        kills: instants on that clock at which a worker of the service was killed on purpose.
        processes: who took part, one row for each.
        shifts: what to add to the stamps of each process to be on the run's clock (Arrow: instance, shift).
    """

    facts: RunFacts
    began: int
    kills: tuple[int, ...]
    processes: tuple[Process, ...]
    shifts: pa.Table

    @property
    def warm_from(self) -> int:
        """When the warm-up ended, on the run's clock."""
        return self.began + self.facts.warmup_ns


def read_record(tables: RunTables) -> RunRecord:
    """Read what a run says of itself.

    Raises:
        RunFolderError: `run.json` lacks what every run has.
    """
    meta = _Meta(tables.run)
    began = meta.anchor("began")
    rows = _last_of_each_process(tables).to_pylist()
    return RunRecord(
        facts=_facts(meta, began, last_sign=_last_sign(tables)),
        began=began.monotonic,
        kills=tuple(_kills(meta.get("faults", list, []), began)),
        processes=tuple(map(_process, rows)),
        shifts=_shifts(rows, began),
    )


class _Meta:
    """`run.json`, with one clear error for what is missing or of another type."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._values = run.meta()

    def must(self, name: str, kind: type[_Value]) -> _Value:
        value = self._values.get(name)
        if not isinstance(value, kind):
            raise RunFolderError(
                f"{self.run.path}/run.json: `{name}` is missing or no {kind.__name__}; "
                "the run is cut short or was not written by timesplit"
            )
        return value

    def get(self, name: str, kind: type[_Value], default: _Value) -> _Value:
        return default if self._values.get(name) is None else self.must(name, kind)

    def maybe(self, name: str, kind: type[_Value]) -> _Value | None:
        return None if self._values.get(name) is None else self.must(name, kind)

    def anchor(self, name: str) -> Anchor:
        clocks = self.must(name, dict)
        try:
            return Anchor(monotonic=int(clocks["monotonic"]), utc=int(clocks["utc"]))
        except (KeyError, TypeError, ValueError):
            raise RunFolderError(
                f"{self.run.path}/run.json: `{name}` needs `monotonic` and `utc` in nanoseconds; "
                "the run is cut short or was not written by timesplit"
            ) from None

    def seconds(self, name: str) -> float:
        value = self._values.get(name, 0)
        return float(value) if isinstance(value, int | float) else float(self.must(name, float))


def _facts(meta: _Meta, began: Anchor, last_sign: int | None) -> RunFacts:
    ended = meta.anchor("ended") if meta.maybe("ended", dict) else None
    last = ended.monotonic if ended else last_sign or began.monotonic
    return RunFacts(
        key=meta.must("key", str),
        folder=meta.run.path.name,
        scenario=meta.must("scenario", str),
        title=meta.get("title", str, ""),
        question=meta.get("question", str, ""),
        model=meta.must("model", str),
        target=meta.get("host", str, ""),
        began=_iso(began.utc),
        ended=_iso(ended.utc) if ended else None,
        lasted_ns=last - began.monotonic,
        warmup_ns=round(meta.seconds("warmup_s") * SECOND_NS),
        stages=tuple(map(str, meta.get("stages", list, []))),
        users=meta.maybe("users", int),
        generators=meta.maybe("generators", int),
        traces=meta.maybe("traces", str),
        command=tuple(map(str, meta.get("command", list, []))),
        git_commit=meta.maybe("git_commit", str),
        versions=_texts(meta.get("versions", dict, {})),
        service=_texts(meta.get("service", dict, {})),
        faults=tuple(map(_fault_line, meta.get("faults", list, []))),
    )


def _iso(utc_ns: int) -> str:
    return datetime.fromtimestamp(utc_ns / SECOND_NS, UTC).isoformat(timespec="seconds")


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        str(name): value if isinstance(value, str) else json.dumps(value) for name, value in values.items()
    }


def _fault_line(fault: object) -> str:
    if not isinstance(fault, dict):
        return str(fault)
    return ", ".join(f"{name} {value}" for name, value in fault.items())


def _kills(faults: list[Any], began: Anchor) -> list[int]:
    return [
        began.monotonic + round(fault["done_at"] * SECOND_NS)
        for fault in faults
        if isinstance(fault, dict)
        and fault.get("process") == "service-worker"
        and isinstance(fault.get("done_at"), int | float)
    ]


def _last_sign(tables: RunTables) -> int | None:
    client = tables.table(CLIENT)
    last = client.aggregate(last=ibis.greatest(_.done.max(), _.intended.max()))
    value = tables.fetch(last)["last"][0].as_py()
    return None if value is None else int(value)


def _last_of_each_process(tables: RunTables) -> pa.Table:
    newest_first = ibis.row_number().over(group_by="instance", order_by=ibis.desc("monotonic"))
    hosts = tables.table(HOSTS).mutate(age=newest_first)
    return tables.fetch(hosts.filter(_.age == 0).drop("age").order_by("role", "service", "instance"))


def _process(row: Mapping[str, Any]) -> Process:
    return Process(
        instance=row["instance"],
        role=row["role"],
        service=row["service"],
        host=row["host"],
        pid=row["pid"],
        written=row["written"],
        forwarded=row["forwarded"],
        dropped=row["dropped"],
        versions=_json_object(row["versions"]),
        configuration=_json_object(row["configuration"]),
    )


def _json_object(text: str | None) -> dict[str, str]:
    try:
        values = json.loads(text or "{}")
    except ValueError:
        return {"unreadable": str(text)}
    return _texts(values) if isinstance(values, dict) else {"unreadable": str(text)}


def _shifts(rows: list[dict[str, Any]], began: Anchor) -> pa.Table:
    # One boot id is one clock: then no anchor can add its own error.
    one_clock = len({row["boot_id"] for row in rows}) <= 1
    shifts = {
        row["instance"]: 0 if one_clock else began.to_monotonic(row["utc"]) - row["monotonic"] for row in rows
    }
    return pa.table(
        {"instance": pa.array(shifts, pa.string()), "shift": pa.array(shifts.values(), pa.int64())}
    )
