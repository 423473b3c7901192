"""This process as a generator of load: when a run begins and ends, and who else takes part in it.

Locust's `test_start` begins a run, each with a key of its own. With several processes the master makes the
key and the folder, and tells them to the workers with the order to spawn users: they record, it adds up.
"""

import gc
import inspect
import logging
import os
import secrets
import sys
from abc import ABC, abstractmethod
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import gevent
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from timesplit.clocks import read_anchor
from timesplit.errors import TimesplitError, UsageError
from timesplit.loadgen.choice import leave_out_by_name
from timesplit.loadgen.meta import host_row, run_meta, scenario_name
from timesplit.loadgen.progress import ProgressFile, Tally
from timesplit.loadgen.recorder import Recorder
from timesplit.loadgen.spans import SpanSender
from timesplit.runfolder import RunFolder, runs_root
from timesplit.schema import HOSTS
from timesplit.tracecontext import new_run_key

_log = logging.getLogger(__name__)
_TALLY, _FINISHED = "timesplit-tally", "timesplit-finished"  # messages from a worker to its master
# Locust sends the options that it does not know with each order to spawn users, and so also to workers that come
# late. A message of our own could overtake a worker's start and find nobody who listens.
_OPTION: Final = "timesplit_run"
_REPORT_S: Final = 1.0
_TURN_S: Final = 0.0005


class Generator(ABC):
    """The runs of a Locust environment, as seen by one of its processes.

    Attributes:
        recorder: keeps the records of the present run; None between runs, and in a master.
        tally: what this process has seen of the present run, or of the last one.
    """

    def __init__(self, environment: Environment) -> None:
        self.recorder: Recorder | None = None
        self.tally = Tally()
        self._environment = environment
        self._spans: SpanSender | None = None
        _get_ready()

    @staticmethod
    def of(environment: Environment) -> "Generator | None":
        """Return the generator of an environment; None if Locust fired no event for it."""
        return _generators.get(environment)

    @abstractmethod
    def begin(self) -> None:
        """Begin a run."""

    @abstractmethod
    def end(self) -> None:
        """End the run, if one is going on."""

    @abstractmethod
    def finish(self) -> None:
        """Stop the load everywhere: the scenario has done all that it meant to do."""

    def _record(self, run: Path, told: dict[str, Any]) -> None:
        """Begin to record.

        Args:
            run: the run's folder.
            told: what every process must know of the run; see `Leader`.
        """
        key, instance, now = bytes.fromhex(told["key"]), secrets.token_hex(8), read_anchor()
        warm_from = now.monotonic + round(told["warmup_s"] * 1e9)
        self._spans = SpanSender.from_environment(key, instance, now, self._environment.host)
        self.recorder = Recorder(run, key, instance, warm_from, self._spans)
        self.recorder.enter(told["stage"])
        self.recorder.add(HOSTS, host_row(instance, None, None))
        self.tally = self.recorder.tally

    def _end_record(self) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        recorder.settle_open()
        recorder.flush()
        counts = {}
        if self._spans is not None:
            self._spans.close()
            counts = {"spans_sent": self._spans.sent, "spans_dropped": self._spans.dropped}
        recorder.add(HOSTS, host_row(recorder.instance, self.tally.begun, recorder.written, **counts))
        recorder.close()

    @property
    def _runner(self) -> Any:
        return self._environment.runner


class Leader(Generator):
    """The process that makes the run: the only one, which also records, or the master of workers."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._is_master = isinstance(self._runner, MasterRunner)
        self._folder: RunFolder | None = None
        self._told: dict[str, Any] = {}
        self._tallies: dict[str, dict[str, Any]] = {}
        self._progress: ProgressFile | None = None
        self._runner.register_message(_TALLY, self._on_tally)
        self._runner.register_message(_FINISHED, lambda **_: self.finish())

    def begin(self) -> None:
        """Make key and folder, tell the workers, record if there are none."""
        key, meta = new_run_key(), run_meta(self._environment, read_anchor())
        self._folder = RunFolder.create(runs_root(), scenario_name(self._environment), key)
        self._folder.write_meta({"key": key.hex()} | meta)
        _log.info("timesplit: run folder %s", self._folder.path)
        told = {"key": key.hex(), "folder": self._folder.path.name, "stage": meta["stages"][0]}
        self._told, self._tallies = told | {"warmup_s": meta["warmup_s"]}, {}
        if self._is_master:
            setattr(self._environment.parsed_options, _OPTION, self._told)
        else:
            self._record(self._folder.path, self._told)
        if path := os.environ.get("TIMESPLIT_PROGRESS"):
            self._progress = ProgressFile(Path(path), self._folder.path, self._total)

    def end(self) -> None:
        """Write the rest, and say in `run.json` that the run came to its end.

        A master is told by Locust twice, before its workers end and after.
        """
        self._end_record()
        if self._progress is not None:
            self._progress.close()
        if self._folder is not None:
            users = self._runner.target_user_count
            self._folder.write_meta(self._folder.meta() | {"ended": asdict(read_anchor()), "users": users})
        self._folder = None

    def finish(self) -> None:
        """Stop the load; without a web page to go back to, Locust as well."""
        options = self._environment.parsed_options
        stop = self._runner.quit if options is None or options.headless else self._runner.stop
        gevent.spawn(stop)  # not from here: the user who calls this is one of those that it kills

    def _total(self) -> Tally:
        return Tally.sum_of(self._tallies.values()) if self._is_master else self.tally

    def _on_tally(self, msg: Any, **_: Any) -> None:
        if msg.data["key"] == self._told.get("key"):
            self._tallies[msg.node_id] = msg.data


class Worker(Generator):
    """A process that records what its master has begun."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._key = ""
        self._reporter: gevent.Greenlet | None = None

    def begin(self) -> None:
        """Record into the run's folder; on another host than the master's it is made here.

        Raises:
            UsageError: the master said nothing of a run.
        """
        told = getattr(self._environment.parsed_options, _OPTION, None)
        if told is None:
            raise UsageError("the master does not record: start it with the same locustfile")
        run = runs_root() / told["folder"]
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._key = told["key"]
        self._record(run, told)
        self._reporter = gevent.spawn(self._report)

    def end(self) -> None:
        """Write the rest, and tell the master the last figures."""
        if self._reporter is not None:
            self._end_record()
            self._reporter.kill()
            self._reporter = None
            self._tell()

    def finish(self) -> None:
        """Ask the master to stop the load."""
        self._runner.send_message(_FINISHED)

    def _report(self) -> None:
        while True:
            gevent.sleep(_REPORT_S)
            self._tell()

    def _tell(self) -> None:
        self._runner.send_message(_TALLY, {"key": self._key} | self.tally.message())


_generators: WeakKeyDictionary[Environment, Generator] = WeakKeyDictionary()


def _take_part(environment: Environment) -> Generator:
    """Return the generator of an environment, made when it is first asked for."""
    if environment not in _generators:
        runner = environment.runner
        # A worker that joins a running test gets its order to spawn users while its runner is still being made.
        is_worker = runner is None or isinstance(runner, WorkerRunner)
        _generators[environment] = Worker(environment) if is_worker else Leader(environment)
    return _generators[environment]


def _on_init(environment: Environment, web_ui: Any = None, **_: Any) -> None:
    if isinstance(_take_part(environment), Leader):
        leave_out_by_name(environment, web_ui)
    # Locust sets its timer for the run time by the loop's clock, which last looked up before all the imports.
    gevent.get_hub().loop.update_now()


def _on_start(environment: Environment, **_: Any) -> None:
    try:
        _take_part(environment).begin()
    except (OSError, TimesplitError) as error:
        # Locust would go on without us, and load without records is of no use to anybody.
        _log.error("timesplit: %s", error)
        environment.process_exit_code = 2
        gevent.spawn(_quit, environment)


def _quit(environment: Environment) -> None:
    while environment.runner is None:
        gevent.sleep(0.01)
    environment.runner.quit()


def _on_end(**_: Any) -> None:
    for generator in list(_generators.values()):
        generator.end()


def _get_ready() -> None:
    """Do now what would hold up the load for a tenth of a second later, and be taken for the service's time."""
    # What is there by now stays: a full collection need not look at it.
    gc.collect()
    gc.freeze()
    # Locust calls this when it stops its users. The first call looks for the file of every module, and at its end
    # users are killed whose think time ran out meanwhile.
    inspect.stack()
    # The writing threads take turns with the load: by default of 5 ms, which the load would be late by.
    sys.setswitchinterval(_TURN_S)


def _listen_on_loopback(parser: ArgumentParser, **_: Any) -> None:
    """Let Locust's page and master listen on loopback only, where nobody asks for more."""
    parser.set_defaults(web_host="127.0.0.1", master_bind_host="127.0.0.1")


events.init_command_line_parser.add_listener(_listen_on_loopback)
events.init.add_listener(_on_init)
events.test_start.add_listener(_on_start)
events.test_stop.add_listener(_on_end)
events.quit.add_listener(_on_end)  # a run may break off before Locust counts it as running
