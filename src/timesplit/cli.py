"""The command line: `timesplit run`, `timesplit serve`, `timesplit report`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from timesplit.errors import TimesplitError, UsageError
from timesplit.lab.scenario import Scenario, find_scenario, parse_duration, paths_scenario

# What a command needs is imported when it runs: `timesplit --help` is quick, and the base install has less.
if TYPE_CHECKING:
    from timesplit.lab.stack import ServiceSettings

INTERRUPTED = 130
_RUN_HELP = """Without --host: starts the demo service with all it needs, drives it, and stops it again.
A scenario that has stages of its own (it says so) takes no -u, -r and -t.
With --host there are client records only, unless the service there sends its spans to a timesplit forwarder,
as `timesplit serve` does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; each error is one line on standard error, without traceback."""
    try:
        if os.name != "posix":
            raise UsageError("Windows is not supported (gunicorn needs fork): use Linux, macOS or WSL")
        options = _parser().parse_args(arguments)
        # Container runtimes and CI send SIGTERM: it stops everything just as Ctrl-C does. A shell script starts
        # what it puts in the background with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except TimesplitError as error:
        print(f"timesplit: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("timesplit"):
            raise
        print(f"timesplit: {error.name} is missing: pip install 'timesplit[lab,service]'", file=sys.stderr)
        return UsageError.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def run(options: argparse.Namespace) -> int:
    """Run a scenario, then its report; the run folder's path is the last line, whatever happens."""
    from timesplit.lab.display import Display
    from timesplit.lab.run import ScenarioRun

    scenario = _scenario(options)
    display = Display()
    scenario_run = ScenarioRun(scenario, display, _service_settings(options, scenario), options.host)
    try:
        with display:
            folder = scenario_run.carry_out()
            display.say("reading the records")
        return _report(folder)
    finally:
        if scenario_run.folder:
            print(scenario_run.folder)


def serve(options: argparse.Namespace) -> NoReturn:
    """Run the demo service, for load from elsewhere, until it is interrupted."""
    from timesplit.lab.run import serve_demo

    serve_demo(_service_settings(options), partial(print, flush=True))


def report(options: argparse.Namespace) -> int:
    """Write a run's report anew and print its table."""
    return _report(options.run)


def _scenario(options: argparse.Namespace) -> Scenario:
    """Find the scenario, and change it as the options say."""
    if bool(options.path) == bool(options.scenario):
        raise UsageError("give either a scenario, such as `timesplit run mixed`, or --path")
    scenario = paths_scenario(options.path) if options.path else find_scenario(options.scenario)
    load = {
        "users": options.users,
        "spawn_rate": options.spawn_rate or options.users,
        "duration": options.run_time,
    }
    if any(load.values()) and scenario.duration is None:
        raise UsageError(f"{scenario.name} has stages of its own: -u, -r and -t do not apply to it")
    changes = {**load, "processes": options.processes, "user_classes": tuple(options.user_class)}
    return replace(scenario, **{name: value for name, value in changes.items() if value})


def _service_settings(options: argparse.Namespace, scenario: Scenario | None = None) -> "ServiceSettings":
    from timesplit.lab.stack import ServiceSettings

    given = {"--workers": options.workers, "--port": options.port, "--traces": options.traces}
    if scenario and options.host and any(given.values()):
        names = ", ".join(name for name, value in given.items() if value)
        raise UsageError(f"{names}: for the demo service; with --host the service runs already")
    return ServiceSettings(
        workers=options.workers or (scenario.workers if scenario else None),
        port=options.port,
        traces=options.traces,
        environment=scenario.service if scenario else {},
    )


def _report(run: Path) -> int:
    from timesplit.report import write_report
    from timesplit.report.terminal import print_summary

    print_summary(write_report(run))
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like all other errors, not after a screen of usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="timesplit", description="Where each request's time goes, and how much load it can take."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run a scenario and report it", description=_RUN_HELP))
    _add_serve(commands.add_parser("serve", help="run the demo service without load, until Ctrl-C"))
    _add_report(commands.add_parser("report", help="read a run folder: table, summary.json, report.html"))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("scenario", nargs="?", help="a name in loadtests/, or the path of any locustfile")
    add(
        "user_class",
        nargs="*",
        help="Locust user classes to run instead of the scenario's own; directly behind it",
    )
    add(
        "--path",
        action="append",
        metavar="P",
        help="instead of a scenario: request this path; may be repeated",
    )
    add("--host", metavar="URL", help="drive a service that runs already")
    add("-u", "--users", type=_count, help="number of users")
    add("-r", "--spawn-rate", type=_rate, help="users started per second; with -u, all in the first second")
    add("-t", "--run-time", type=_duration, help="how long, for example 90s or 1m30s")
    add("--processes", type=_count, help="processes of the generator")
    _add_service_options(parser)
    parser.set_defaults(command=run)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_service_options(parser)
    parser.set_defaults(command=serve)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, for example runs/latest")
    parser.set_defaults(command=report)


def _add_service_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_count, help="workers of the demo service")
    parser.add_argument("--port", type=_count, help="port of the demo service; default: a free one")
    parser.add_argument(
        "--traces", choices=("otel", "off"), help="who makes the server's spans; default: otel"
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return rate


def _duration(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
