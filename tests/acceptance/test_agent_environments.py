"""The agent in environments that are not ours: another Python, and nothing of timesplit in it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.agent_commands import environment, run, serve_command
from timesplit.instrumentation import inject

NEWER = ("3.14", "3.13", "3.12")
OLD = ("2.7", "3.6", "3.8", "3.10")
PACKAGES = ("fastapi", "uvicorn", "gunicorn")
APPLICATIONS = Path(__file__).parents[1] / "integration" / "agent_apps.py"


def interpreter(version: str) -> str | None:
    """Return a Python of that version on this machine."""
    installed = (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")
    named = shutil.which(f"python{version}")
    for candidate in [*([named] if named else []), *map(str, installed)]:
        # A name on the path may stand for a version that is not chosen.
        if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The newest Python here, in an environment with FastAPI and servers, and no timesplit."""
    found = next((path for path in map(interpreter, NEWER) if path), None)
    if found is None:
        pytest.skip(f"no Python {' or '.join(NEWER)} on this machine")
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([found, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *PACKAGES], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        pytest.skip(f"no package index: {installed.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with applications."""
    shutil.copy(APPLICATIONS, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "server",
    [
        ["uvicorn", "--port", "{port}", "--log-level", "critical"],
        [
            "gunicorn",
            "--bind",
            "127.0.0.1:{port}",
            "--no-control-socket",
            "--preload",
            "--worker-class",
            "asgi",
        ],
    ],
    ids=["uvicorn", "gunicorn"],
)
def test_requests_are_recorded(server: list[str], python: str, folder: Path) -> None:
    with serve_command([python, "-m", *server, "agent_apps:wrapped"], folder) as service:
        account = service.account(service.get("/v1/shops/a/items/b"))
        assert account.route == "/v1/shops/{shop}/items/{item}"
        (worker,) = service.workers()
        assert worker.header["failed"] == 0
        assert worker.header["about"]["versions"]["python"] in run(python, "--version", env=os.environ).stdout


def test_a_timesplit_of_the_environment_is_left_aside(python: str, folder: Path) -> None:
    (folder / "timesplit.py").write_text("raise RuntimeError('of another time')\n")
    (folder / "itself.py").write_text(
        "import timesplit\nfrom agent_apps import app\ntimesplit.instrument(app)\n"
    )
    command = [python, "-m", "uvicorn", "--port", "{port}", "--log-level", "critical", "itself:app"]
    with serve_command(command, folder) as service:
        assert service.account(service.get("/users/7")).route == "/users/{user_id}"


def test_doctor_tells_what_is_armed_there(python: str) -> None:
    told = run(python, "-m", "timesplit.instrumentation.doctor", env=environment())
    states = {line.partition("  ")[0]: line.rpartition("  ")[2] for line in told.stdout.splitlines()}
    assert told.stderr == ""
    assert states["ledger"] == states["uvicorn Server.startup"] == states["loop asyncio"] == "armed"
    assert states["loop uvloop"] == "not armed: uvloop is not installed"


@pytest.mark.parametrize("version", OLD)
def test_programs_of_older_pythons_start_as_ever(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.own_sitecustomize = True\n")
    env = environment(PYTHONPATH=str(tmp_path))
    program = "import sys; print(getattr(sys, 'own_sitecustomize', False))"
    result = run(python, "-c", program, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    if version != "2.7":  # which has no way of finding the next one that does not import it
        assert result.stdout == "True\n"
    assert inject.STARTUP.is_dir()
