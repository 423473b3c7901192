"""An application started with `opentelemetry-instrument`, in an environment where timesplit is installed."""

import os
import shutil
from pathlib import Path

import pytest

from tests.integration.agent_commands import PYTHON, plain_environment, serve_command
from timesplit.instrumentation import foreign

TRACED = """from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))

from agent_apps import app
"""
ENTRY_POINT = """[opentelemetry_instrumentor]
timesplit = timesplit.tracing.instrumentor:TimesplitInstrumentor
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder on the path that says what an installed timesplit says."""
    told = tmp_path / "installed" / "timesplit-0.1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: timesplit\nVersion: 0.1.0\n")
    (told / "entry_points.txt").write_text(ENTRY_POINT)
    return told.parent


def test_the_parts_attach_to_the_spans_that_the_launcher_makes(installed: Path, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("agent_apps.py"), tmp_path)
    (tmp_path / "traced.py").write_text(TRACED)
    source = Path(__file__).parents[2] / "src"
    env = plain_environment(
        PYTHONPATH=os.pathsep.join([str(installed), str(source)]),  # not the folder for injection
        TIMESPLIT_TRACES="ledger",
        TIMESPLIT_JOURNAL=str(tmp_path / "journals"),
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="sqlalchemy",  # it refuses, in a line on stderr, the version here
    )
    launcher = str(Path(PYTHON).with_name("opentelemetry-instrument"))
    uvicorn = [launcher, PYTHON, "-m", "uvicorn", "--port", "{port}", "--log-level", "critical"]
    with serve_command([*uvicorn, "traced:app"], tmp_path, env) as service:
        account = service.account(service.get("/users/7"))
        assert account.route == "/users/{user_id}"
        assert account.foreign == foreign.SAMPLED
