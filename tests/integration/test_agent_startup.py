"""Any Python program starts as it would without the agent on its path."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.agent_commands import PYTHON, environment, plain_environment, run
from timesplit.instrumentation import inject

WHAT_IS_THERE = "import json, sys; print(json.dumps([sys.path, sorted(sys.modules), str(sys.meta_path)]))"
OWN = "import sys\nsys.own_sitecustomize = True\n"
# With a sitecustomize of the system there is one to be found and run: contextlib comes with importlib.util.
EXPECTED = {"sitecustomize", "timesplit_start", "importlib", "warnings", "contextlib"}
IS_OWN = "import sys, sitecustomize; print(sys.own_sitecustomize, sitecustomize.__file__)"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a sitecustomize of the application's own."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(OWN)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of our folder, in a package that fails when it is imported."""
    package = tmp_path / "timesplit"
    copy = shutil.copytree(inject.STARTUP, package / "instrumentation" / "inject" / "startup")
    (package / "__init__.py").write_text("raise RuntimeError('broken')\n")
    return Path(copy)


def said(result: subprocess.CompletedProcess[str]) -> str:
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


def test_a_program_sees_our_folder_and_nothing_else_of_ours() -> None:
    path, modules, finders = json.loads(said(run(PYTHON, "-c", WHAT_IS_THERE, env=environment())))
    bare = json.loads(said(run(PYTHON, "-c", WHAT_IS_THERE, env=plain_environment())))
    assert [entry for entry in path if entry not in bare[0]] == [str(inject.STARTUP)]
    ours = {module for module in modules if module not in bare[1]}
    assert "timesplit_start" in ours  # Debian's Python has a sitecustomize without us
    assert not {module for module in ours if module.partition(".")[0] not in EXPECTED}
    assert finders.count("timesplit_start") == 1


@pytest.mark.parametrize("option", ["-I", "-E", "-S"])
def test_options_that_leave_out_the_path_leave_us_out(option: str) -> None:
    result = run(
        PYTHON, option, "-c", "import sys; print('timesplit_start' in sys.modules)", env=environment()
    )
    assert said(result) == "False"


@pytest.mark.parametrize(
    "command",
    [("-m", "json.tool", "--help"), ("-c", "import multiprocessing, venv, ssl")],
    ids=str,
)
def test_ordinary_programs_run(command: tuple[str, ...]) -> None:
    bare = run(PYTHON, *command, env=plain_environment())
    assert said(run(PYTHON, *command, env=environment())) == said(bare)


def test_the_sitecustomize_of_the_path_runs_too(own: Path) -> None:
    answer = said(run(PYTHON, "-c", IS_OWN, env=environment(PYTHONPATH=str(own))))
    assert answer == f"True {own / 'sitecustomize.py'}"


def test_the_sitecustomize_of_an_environment_runs_too(tmp_path: Path) -> None:
    run(PYTHON, "-m", "venv", "--without-pip", str(tmp_path / "env"), env=environment())
    (packages,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    (packages / "sitecustomize.py").write_text(OWN)
    program = (str(tmp_path / "env/bin/python"), "-c", IS_OWN)
    bare = run(*program, env=plain_environment())  # Debian's own sitecustomize comes first
    ours = run(*program, env=environment())
    assert (ours.returncode, ours.stdout) == (bare.returncode, bare.stdout)


def test_an_error_of_the_applications_sitecustomize_is_told_as_ever(own: Path) -> None:
    (own / "sitecustomize.py").write_text("raise ValueError('its own')\n")
    program = (PYTHON, "-c", "print('runs')")
    bare = run(*program, env=plain_environment(PYTHONPATH=str(own)))
    ours = run(*program, env=environment(PYTHONPATH=str(own)))
    assert "its own" in bare.stderr
    assert (ours.returncode, ours.stdout, ours.stderr) == (bare.returncode, bare.stdout, bare.stderr)


@pytest.mark.parametrize(
    ("program", "stage"),
    [("print('runs')", "loaded"), ("import starlette.applications; print('runs')", "armed")],
)
def test_an_error_of_ours_is_told_in_one_line_and_only_where_it_is_asked_for(
    program: str, stage: str, copy: Path
) -> None:
    if stage == "loaded":
        (copy / "timesplit_start.py").write_text("raise RuntimeError('broken')\n")
    quiet = plain_environment(TIMESPLIT_TRACES="ledger", PYTHONPATH=str(copy))
    result = run(PYTHON, "-c", program, env=quiet)
    assert (result.stdout, result.stderr) == ("runs\n", "")
    result = run(PYTHON, "-c", program, env={**quiet, "TIMESPLIT_DEBUG": "1"})
    assert result.stdout == "runs\n"
    assert result.stderr == f"timesplit: not {stage}: RuntimeError: broken\n"


def test_two_copies_of_our_folder_do_not_call_each_other_for_ever(copy: Path, own: Path) -> None:
    paths = os.pathsep.join([str(copy), str(own)])
    assert said(run(PYTHON, "-c", IS_OWN, env=environment(PYTHONPATH=paths))).startswith("True")


def test_opentelemetry_instrument_starts_the_agent_too(own: Path) -> None:
    launcher = str(Path(PYTHON).with_name("opentelemetry-instrument"))
    program = "import sys, sitecustomize; print('timesplit_start' in sys.modules, sitecustomize.__file__)"
    env = environment(
        OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*"
    )
    result = run(launcher, PYTHON, "-c", program, env=env)
    loaded, _, theirs = result.stdout.strip().partition(" ")
    assert loaded == "True", result.stderr
    assert theirs.endswith("opentelemetry/instrumentation/auto_instrumentation/sitecustomize.py")


def test_the_package_comes_from_its_own_place_whatever_is_installed() -> None:
    program = "import timesplit, sys; print(timesplit.__file__, [p for p in sys.path if 'src' in p])"
    place = inject.STARTUP.parents[2] / "__init__.py"
    assert said(run(PYTHON, "-c", program, env=environment())).startswith(str(place))
