"""Run folders made without a service: every row is chosen, so every figure of a report can be foretold."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timesplit.runfolder import RunFolder, TableWriter
from timesplit.schema import CLIENT, HOSTS, INPROCESS, JOBS, SERVER, STREAMS

MS = 1_000_000
SECOND = 1_000 * MS
BEGAN = {"monotonic": 5_000 * SECOND, "utc": 1_798_000_000 * SECOND}
KEY = bytes.fromhex("00c0ffee00c0ffee")
GENERATOR = "00000000000000aa"
WORKER = "00000000000000bb"


class SyntheticRun:
    """A run folder in the making. Times are nanoseconds since the run began."""

    def __init__(self, root: Path, **meta: Any) -> None:
        self.folder = RunFolder.create(root, meta.get("scenario", "synthetic"), KEY)
        self.meta: dict[str, Any] = {
            "key": KEY.hex(),
            "scenario": "synthetic",
            "title": "Synthetic run",
            "question": "Is every figure the one that was put in?",
            "model": "closed",
            "warmup_s": 0,
            "began": BEGAN,
            "host": "http://127.0.0.1:8000",
            "command": ["timesplit", "run", "synthetic"],
            "versions": {"python": "3.11.9", "locust": "2.47.0"},
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "generators": 1,
            "users": 10,
            "stages": ["steady"],
            "traces": "otel",
            "service": {"workers": 1},
            **meta,
        }
        self._ids = itertools.count(1)
        self._rows: dict[str, list[dict[str, Any]]] = {
            table.name: [] for table in (CLIENT, SERVER, HOSTS, INPROCESS, JOBS, STREAMS)
        }

    def attempt(self, name: str, intended: int, response: int | None, **columns: Any) -> dict[str, Any]:
        """Add a client row; `sent` is `intended` unless given."""
        number = next(self._ids)
        row: dict[str, Any] = {
            "trace_id": KEY + number.to_bytes(8, "big"),
            "span_id": number.to_bytes(8, "little"),
            "name": name,
            "stage": "steady",
            "method": name.partition(" ")[0],
            "intended": BEGAN["monotonic"] + intended,
            "sent": BEGAN["monotonic"] + intended,
            "done": None if response is None else BEGAN["monotonic"] + intended + response,
            "connect_ns": 0,
            "reused": True,
            "status": None if response is None else 200,
            "generator": GENERATOR,
            **columns,
        }
        self._rows["client"].append(row)
        return row

    def served(self, attempt: dict[str, Any], started: int, ended: int, **columns: Any) -> dict[str, Any]:
        """Add the server row of an attempt."""
        row: dict[str, Any] = {
            "trace_id": attempt["trace_id"],
            "span_id": next(self._ids).to_bytes(8, "big"),
            "parent_span_id": attempt["span_id"],
            "client_span_id": attempt["span_id"],
            "method": attempt["method"],
            "service": "demo",
            "instance": WORKER,
            "pid": 4321,
            "seq": len(self._rows["server"]),
            "http_route": attempt["name"].partition(" ")[2],
            "status": attempt["status"],
            "started": BEGAN["monotonic"] + started,
            "ended": BEGAN["monotonic"] + ended,
            "ended_by": "response",
            **columns,
        }
        self._rows["server"].append(row)
        return row

    def process(self, instance: str, role: str, **columns: Any) -> None:
        """Add a row of `hosts/`."""
        self._rows["hosts"].append(
            {
                "instance": instance,
                "role": role,
                "pid": 1234,
                "host": "lab",
                "boot_id": "b0071d",
                "service": role,
                "monotonic": BEGAN["monotonic"],
                "utc": BEGAN["utc"],
                "versions": json.dumps({"python": "3.11.9"}),
                "configuration": "{}",
                **columns,
            }
        )

    def add(self, table: str, **columns: Any) -> None:
        """Add a row to any other table."""
        self._rows[table].append(columns)

    def write(self, lasted: int | None = 60 * SECOND) -> Path:
        """Write everything; `lasted` None leaves the run cut short."""
        ended = {name: clock + (lasted or 0) for name, clock in BEGAN.items()}
        self.folder.write_meta(self.meta | ({} if lasted is None else {"ended": ended}))
        for table in (CLIENT, SERVER, HOSTS, INPROCESS, JOBS, STREAMS):
            TableWriter(self.folder.path, table, "synthetic").write_rows(self._rows[table.name])
        return self.folder.path

    def write_with_processes(self, lasted: int | None = 60 * SECOND) -> Path:
        """Write everything, with a generator and a worker that counted what is there."""
        self.process(GENERATOR, "generator", written=len(self._rows["client"]))
        made = len(self._rows["server"])
        self.process(WORKER, "worker", service="demo", written=made, forwarded=made, dropped=0)
        return self.write(lasted)


def burst_run(root: Path, *, bursts: int = 10, sizes: Sequence[int] = (20, 100)) -> Path:
    """Bursts on the four waiting routes of one worker, and the same in process."""
    run = SyntheticRun(
        root,
        scenario="bursts",
        title="Bursts on the four ways to wait",
        question="What does a burst cost that an in-process test does not show?",
        model="bursts",
        stages=[f"burst-{size}" for size in sizes],
        users=max(sizes),
    )
    chance = random.Random(7)
    at = SECOND
    for size, burst, name in itertools.product(sizes, range(bursts), _WAITING):
        for rank in range(size):
            where = {"stage": f"burst-{size}", "burst": burst}
            began, ended = _WAITING[name](rank)
            noise = chance.randrange(200_000, 900_000) + 20_000 * rank
            row = run.attempt(
                name, at, ended + noise + 400_000, sent=BEGAN["monotonic"] + at + 30_000, **where
            )
            run.served(row, at + began + noise, at + ended + noise, query_ns=0, cache_ns=0, upstream_ns=0)
            if burst < 3:
                start = BEGAN["monotonic"] + at + began
                stamps = {"burst_started": BEGAN["monotonic"] + at, "started": start, "status": 200}
                run.add("inprocess", name=name, done=start + ended - began + noise // 4, **where, **stamps)
        at += 6 * SECOND if "blocking-in" in name else SECOND
    return run.write_with_processes(at)


_WAITING: dict[str, Callable[[int], tuple[int, int]]] = {  # rank in the burst → first step, last byte
    "GET /async-sleep": lambda rank: (0, 51 * MS),
    "GET /blocking-in-async": lambda rank: (rank * 51 * MS, (rank + 1) * 51 * MS),
    "GET /sync-blocking": lambda rank: (0, (rank // 40 + 1) * 51 * MS),
    "GET /offloaded-blocking": lambda rank: (0, (rank // 40 + 1) * 51 * MS),
}
_MIXED = {  # median of the span in ms, its spread, share of the mix, medians of query and cache
    "GET /users/{user_id}": (4.0, 0.4, 0.30, 2.6, 0.0),
    "GET /cached-users/{user_id}": (1.6, 0.5, 0.22, 0.2, 0.5),
    "GET /users/{user_id}/orders-n-plus-one": (31.0, 0.3, 0.08, 24.0, 0.0),
    "GET /users/{user_id}/orders-joined": (6.0, 0.4, 0.08, 4.0, 0.0),
    "GET /profile/{user_id}": (22.0, 0.5, 0.12, 0.0, 0.0),
    "GET /bad-profile/{user_id}": (24.0, 0.6, 0.02, 0.0, 0.0),
    "POST /users": (7.0, 0.5, 0.10, 4.5, 0.0),
    "GET /cpu-async": (2.2, 0.2, 0.08, 0.0, 0.0),
}


def mixed_run(root: Path, *, rate: float = 150, seconds: float = 60, seed: int = 3) -> Path:
    """A closed run of a realistic mix: queries, failures, spans lost, a slow start, a stall of one second."""
    run = SyntheticRun(
        root,
        scenario="mixed",
        title="A realistic mix of reads and writes",
        question="What do users of a mixed service wait for?",
        warmup_s=5,
        users=50,
        service={"workers": 3, "database_pool_size": 5},
    )
    chance = random.Random(seed)
    at, lost = 0.0, 0
    while at < seconds:
        at += chance.expovariate(rate)
        lost += _mixed_request(run, chance, round(at * SECOND), stalled=(40 <= at < 41))
    made = len(run._rows["server"]) + lost
    run.process(GENERATOR, "generator", written=len(run._rows["client"]))
    run.process(WORKER, "worker", service="demo", written=made, forwarded=made - lost, dropped=lost)
    return run.write(round(seconds * SECOND))


def _mixed_request(run: SyntheticRun, chance: random.Random, at: int, *, stalled: bool) -> int:
    name = chance.choices(list(_MIXED), [shape[2] for shape in _MIXED.values()])[0]
    median, spread, _, query, cache = _MIXED[name]
    factor = chance.lognormvariate(0, spread) * (3 if at < 4 * SECOND else 1)
    span = round(median * factor * MS)
    wait = round(chance.expovariate(1 / (900 if stalled else 2.5)) * MS)
    fate = chance.random()
    if fate < 0.001:
        error = chance.choice(["timeout", "reset", "refused"])
        run.attempt(name, at, 10 * SECOND if error == "timeout" else wait, status=None, error=error)
        return 0
    failed = {"status": 500, "error": "status"} if 0.001 <= fate < 0.004 else {}
    row = run.attempt(name, at, wait + span + 300_000, **failed)
    if 0.004 <= fate < 0.005:
        return 1
    parts = {"query_ns": round(query * factor * MS), "cache_ns": round(cache * factor * MS)}
    upstream = round(0.9 * span) if "profile" in name else 0
    counts = {"query_count": 21 if "n-plus" in name else int(query > 0), "upstream_count": int(upstream > 0)}
    run.served(row, at + wait, at + wait + span, upstream_ns=upstream, **parts, **counts)
    return 0


def jobs_run(root: Path) -> Path:
    """200 queued jobs that all finish and 200 background tasks of which 37 are lost."""
    run = SyntheticRun(
        root,
        scenario="jobs",
        title="Jobs on a queue and as background tasks, while their worker is killed",
        question="What becomes of work that was accepted?",
        stages=["queue", "background"],
        faults=[{"at": 4, "process": "service-worker", "signal": "KILL", "restart": False, "done_at": 4.1}],
    )
    for number in range(400):
        kind = "queue" if number < 200 else "background"
        at = number * 50 * MS
        path = "/jobs" if kind == "queue" else "/background-jobs"
        row = run.attempt(f"POST {path}", at, 6 * MS, stage=kind, status=202)
        run.served(row, at + MS, at + 5 * MS, query_ns=3 * MS, query_count=1)
        lost = number >= 363
        state = "running" if lost else "dead" if number == 17 else "finished"
        finished = BEGAN["monotonic"] + at + (300 + number % 90) * MS
        run.add(
            "jobs",
            job_id=f"job-{number}",
            kind=kind,
            stage=kind,
            posted=row["done"],
            seen_finished=finished if state == "finished" else None,
            state=state,
            effects=int(state == "finished"),
            attempts=2 if kind == "queue" and number % 50 == 0 else 1,
        )
    return run.write_with_processes(30 * SECOND)
