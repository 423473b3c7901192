"""The account of a request against a simulated event loop whose truth is known at every nanosecond."""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from timesplit.instrumentation.ledger import Segment, Strand, split
from timesplit.parts import CODES

NAMES = {code: name for name, code in CODES.items()}
KINDS = ["query", "upstream", "cache", "other_wait"]


@dataclass
class Program:
    """What a task does in turn.

    `("run", ns)`, `("wait", part, ns)`; `("join", programs)` waits for child tasks,
    `("leave", program)` does not.
    """

    actions: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class Task:
    """A task of the simulated loop."""

    program: Program
    strand: Strand
    joiner: "Task | None" = None
    left: int = 0
    at: int = 0


def programs(depth: int) -> st.SearchStrategy[Program]:
    """Random programs, whose children are random programs too."""
    run = st.tuples(st.just("run"), st.integers(1, 20))
    wait = st.tuples(st.just("wait"), st.sampled_from(KINDS), st.integers(1, 60))
    actions: list[st.SearchStrategy[Any]] = [run, wait]
    if depth:
        children = st.lists(programs(depth - 1), min_size=1, max_size=3)
        actions.append(st.tuples(st.just("join"), children))
        actions.append(st.tuples(st.just("leave"), programs(depth - 1)))
    return st.builds(Program, st.lists(st.one_of(actions), max_size=5))


class Loop:
    """An event loop under a virtual clock, which tells strands what the seams would tell them."""

    def __init__(self, others: list[int]) -> None:
        self.now = 0
        self.ready: list[Task] = []
        self.timers: list[tuple[int, int, Task]] = []
        self.timers_made = 0
        self.others = others  # lengths of steps of other requests, one before each of ours, the last first

    def run(self, root: Task) -> None:
        self.ready.append(root)
        while not root.strand.ended:
            if not self.ready:
                self.now = max(self.now, self.timers[0][0])
            self._fire()
            self.now += self.others.pop() if self.others else 0
            self._fire()
            self._step(self.ready.pop(0))

    def _fire(self) -> None:
        while self.timers and self.timers[0][0] <= self.now:
            due, _, task = heapq.heappop(self.timers)
            task.strand.wake(due, None)
            self.ready.append(task)

    def _step(self, task: Task) -> None:
        strand = task.strand
        strand.step(self.now)
        while task.at < len(task.program.actions):
            action = task.program.actions[task.at]
            task.at += 1
            if self._act(task, action):
                strand.suspend(self.now)
                return
        strand.end(self.now)
        self._tell_joiner(task)

    def _act(self, task: Task, action: Any) -> bool:
        """Carry out an action; tell whether the task is suspended by it."""
        if action[0] == "run":
            self.now += action[1]
        elif action[0] == "leave":
            self._spawn(action[1], task.strand, None)
        elif action[0] == "wait":
            task.strand.part = CODES[action[1]]
            self.timers_made += 1
            heapq.heappush(self.timers, (self.now + action[2], self.timers_made, task))
        else:
            task.strand.part = CODES["other_wait"]
            task.left = len(action[1])
            for program in action[1]:
                self._spawn(program, task.strand, task)
        return action[0] in ("wait", "join")

    def _spawn(self, program: Program, creator: Strand, joiner: Task | None) -> None:
        self.ready.append(Task(program, Strand(self.now, creator), joiner))

    def _tell_joiner(self, task: Task) -> None:
        if task.joiner is None:
            return
        task.strand.awaited = True
        task.joiner.left -= 1
        if task.joiner.left == 0:
            task.joiner.strand.wake(self.now, task.strand)
            self.ready.append(task.joiner)


def simulate(program: Program, others: list[int]) -> tuple[Strand, list[Segment]]:
    """Run a program and account for it."""
    root = Task(program, Strand(1))
    loop = Loop(others)
    loop.now = 1
    loop.run(root)
    return root.strand, split(root.strand, root.strand.began, root.strand.ended)


def parts(segments: list[Segment]) -> dict[str, int]:
    """Nanoseconds of each part."""
    total: Counter[str] = Counter()
    for segment in segments:
        total[NAMES[segment.part]] += segment.end - segment.start
    return dict(total)


def state(strand: Strand, at: int) -> str:
    """What a strand does in the nanosecond that begins at `at`."""
    if not strand.began or at < strand.born or (strand.ended and at >= strand.ended):
        return "absent"
    if at < strand.began:
        return "ready"
    for wait in strand.waits:
        if wait.suspended <= at < wait.ready:
            return "waiting"
        if wait.ready <= at < wait.resumed:
            return "ready"
    return "waiting" if strand.suspended and at >= strand.suspended else "running"


@given(programs(2), st.lists(st.integers(0, 15), max_size=40))
@settings(max_examples=400, deadline=None)
def test_parts_cover_every_nanosecond_once(program: Program, others: list[int]) -> None:
    root, segments = simulate(program, others)
    assert sum(parts(segments).values()) == root.ended - root.began
    assert all(segment.end > segment.start for segment in segments)
    assert all(a.end == b.start for a, b in pairwise(segments))


@given(programs(2), st.lists(st.integers(0, 15), max_size=40))
@settings(max_examples=200, deadline=None)
def test_running_beats_ready_beats_waiting(program: Program, others: list[int]) -> None:
    root, segments = simulate(program, others)
    joined = [strand for strand in root.strands if strand.awaited]
    for segment in segments:
        for at in (segment.start, segment.end - 1):
            states = {state(strand, at) for strand in joined}
            want = "running" if "running" in states else "ready" if "ready" in states else "waiting"
            have = {"route": "running", "loop": "ready"}.get(NAMES[segment.part], "waiting")
            assert have == want, (segment, at, states)


def test_the_last_of_overlapping_waits_counts() -> None:
    waits = [Program([("wait", part, ns)]) for part, ns in (("cache", 30), ("query", 50), ("upstream", 80))]
    _, segments = simulate(Program([("join", waits)]), [])
    assert parts(segments) == {"upstream": 80}


def test_what_nobody_waits_for_does_not_count() -> None:
    left = Program([("wait", "query", 10), ("run", 5), ("wait", "upstream", 500)])
    _, segments = simulate(Program([("leave", left), ("wait", "cache", 40)]), [])
    assert parts(segments) == {"cache": 40}


def test_a_step_of_another_request_is_loop_wait() -> None:
    _, segments = simulate(Program([("wait", "query", 10), ("run", 5)]), [200, 0])
    assert parts(segments) == {"query": 10, "loop": 200, "route": 5}


def test_a_wait_that_is_open_when_the_response_ends_counts_up_to_there() -> None:
    strand = Strand(1)
    strand.step(10)
    strand.part, strand.label = CODES["query"], "SELECT"
    strand.suspend(15)
    assert split(strand, 10, 40) == [
        Segment(CODES["route"], "", 10, 15),
        Segment(CODES["query"], "SELECT", 15, 40),
    ]


def test_time_after_the_response_is_cut() -> None:
    strand = Strand(1)
    strand.step(10)
    strand.suspend(20)
    strand.wake(50, None)
    strand.step(60)
    strand.end(90)
    assert split(strand, 10, 55) == [
        Segment(CODES["route"], "", 10, 20),
        Segment(CODES["other_wait"], "", 20, 50),
        Segment(CODES["loop"], "", 50, 55),
    ]
