"""The command line: what each command takes, and which piece of the lab does it."""

import argparse
import os
import signal
import subprocess
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
    from timesplit.lab.run import Target
    from timesplit.lab.stack import ServiceSettings

ROUTES = ("/noop", "/query", "/noop-def")
INTERRUPTED = 130
_RUN_HELP = """Starts the service under test, drives it, stops it, and reports. The service is, without any of these
options, the demo service with all it needs; with --app your own application; with --host URL -- COMMAND one that
COMMAND starts; with --host URL alone one that runs already (then there are client records only, unless it was
started by `timesplit serve` or `timesplit exec`). A scenario that has stages of its own takes no -u, -r and -t."""
TRACES = ("ledger", "otel", "off")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; each error is one line on standard error, without traceback."""
    try:
        if os.name != "posix":
            raise UsageError("Windows is not supported (gunicorn needs fork): use Linux, macOS or WSL")
        options = _parse(sys.argv[1:] if arguments is None else arguments)
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
    scenario_run = ScenarioRun(scenario, display, _target(options, scenario))
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

    serve_demo(_demo(options), partial(print, flush=True))


def execute(options: argparse.Namespace) -> int:
    """Run a command with the agent, and a forwarder beside it; return its exit code."""
    from timesplit.lab.own import OwnSettings
    from timesplit.lab.run import serve_command

    if not options.started_by:
        raise UsageError("exec: which command? `timesplit exec -- gunicorn …`")
    settings = OwnSettings(tuple(options.started_by), "", options.traces)
    return serve_command(settings, partial(print, file=sys.stderr, flush=True))


def doctor(options: argparse.Namespace) -> int:
    """Say what would be armed in the application's environment, what not, and why."""
    from timesplit.instrumentation import inject
    from timesplit.lab.own import interpreter

    command = [str(interpreter(options.python)), "-m", "timesplit.instrumentation.doctor"]
    return subprocess.run(command, env=inject.environment(os.environ), check=False).returncode


def bench(options: argparse.Namespace) -> int:
    """Measure what observing costs, and print it."""
    from timesplit.lab.bench import bench_observer

    found = bench_observer(
        Path(".lab") / "bench",
        options.route or ROUTES,
        options.variant or ("ledger", "contrib", "native"),
        options.rounds,
        options.seconds,
        partial(print, file=sys.stderr, flush=True),
    )
    for route, costs in found.items():
        print(f"\n{route:12} CPU per request, bare over this · median [least, most] · added µs")
        for cost in costs[1:]:
            spread = f"[{min(cost.ratios):.3f}, {max(cost.ratios):.3f}]"
            print(f"  {cost.variant:12} {cost.ratio:.3f} {spread}  {cost.added_us:+.1f}")
    return 0


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


def _target(options: argparse.Namespace, scenario: Scenario) -> "Target":
    """Return the service under test as the options name it."""
    from timesplit.lab.own import OwnSettings, interpreter, serving

    if options.started_by:
        _leave_out(options, "workers", "port", "python", "app", with_what="your own command says it")
        if not options.host:
            raise UsageError("-- COMMAND: say with --host URL where it will answer")
        return OwnSettings(tuple(options.started_by), options.host, options.traces)
    if options.host:
        _leave_out(
            options,
            "workers",
            "port",
            "python",
            "app",
            "traces",
            with_what="with --host the service runs already",
        )
        return str(options.host)
    if options.app:
        python = interpreter(options.python)
        return serving(options.app, python, options.workers or 1, options.port, options.traces)
    _leave_out(options, "python", with_what="the demo service runs in timesplit's own environment")
    return _demo(options, scenario)


def _leave_out(options: argparse.Namespace, *names: str, with_what: str) -> None:
    given = [f"--{name}" for name in names if getattr(options, name)]
    if given:
        raise UsageError(f"leave out {', '.join(given)}: {with_what}")


def _demo(options: argparse.Namespace, scenario: Scenario | None = None) -> "ServiceSettings":
    from timesplit.lab.stack import ServiceSettings

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


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; what stands behind `--` is the user's own command, whatever options it has."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:at])
    options.started_by = words[at + 1 :]
    if options.started_by and options.command not in (run, execute):
        raise UsageError(f"-- {options.started_by[0]} …: only `run` and `exec` take a command")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="timesplit", description="Where each request's time goes, and how much load it can take."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run a scenario and report it", description=_RUN_HELP))
    _add_serve(commands.add_parser("serve", help="run the demo service without load, until Ctrl-C"))
    _add_exec(commands.add_parser("exec", help="run any command with the agent: timesplit exec -- COMMAND"))
    _add_doctor(commands.add_parser("doctor", help="what is armed in an environment, what not, and why"))
    _add_bench(commands.add_parser("bench", help="measure what observing costs: timesplit bench observer"))
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
    add("--app", metavar="MODULE:APP", help="your own application, or a function that makes it")
    _add_python(parser)
    add("--host", metavar="URL", help="where the service answers that runs already, or that COMMAND starts")
    add("-u", "--users", type=_count, help="number of users")
    add("-r", "--spawn-rate", type=_rate, help="users started per second; with -u, all in the first second")
    add("-t", "--run-time", type=_duration, help="how long, for example 90s or 1m30s")
    add("--processes", type=_count, help="processes of the generator")
    _add_service_options(parser)
    parser.set_defaults(command=run)


def _add_exec(parser: argparse.ArgumentParser) -> None:
    _add_traces(parser)
    parser.set_defaults(command=execute)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_python(parser)
    parser.set_defaults(command=doctor)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", choices=("observer",), help="observer: CPU per request, bare and observed, at the same time")
    add("--route", action="append", choices=ROUTES, help="only this route; may be repeated")
    add("--variant", action="append", help="ledger, otel, contrib, native; may be repeated")
    add("--rounds", type=_count, default=8, help="rounds per route (default: %(default)s)")
    add("--seconds", type=_duration, default=5.0, help="length of a round (default: %(default)s)")
    parser.set_defaults(command=bench)


def _add_python(parser: argparse.ArgumentParser) -> None:
    text = "Python of your application's environment; default: $VIRTUAL_ENV, ./.venv, else timesplit's own"
    parser.add_argument("--python", type=Path, metavar="PATH", help=text)


def _add_traces(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traces", choices=TRACES, help="what records the service's requests; default: ledger"
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_service_options(parser)
    parser.set_defaults(command=serve)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, for example runs/latest")
    parser.set_defaults(command=report)


def _add_service_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_count, help="workers of the service")
    parser.add_argument("--port", type=_count, help="port of the service; default: a free one")
    _add_traces(parser)


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
