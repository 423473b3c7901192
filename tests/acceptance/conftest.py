"""The lab in a project folder of its own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.lab import Lab

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    """Return a project folder with the demo service and the scenarios, but with state and runs of its own."""
    # Not tmp_path: where the tests run as root, PostgreSQL's user must be able to reach its data.
    folder = Path(tempfile.mkdtemp(prefix="timesplit-acceptance-"))
    folder.chmod(0o755)
    for name in ("service", "loadtests", "deploy"):
        (folder / name).symlink_to(PROJECT / name)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def lab(project: Path) -> Iterator[Lab]:
    """Start commands, and leave nothing of them."""
    lab = Lab(project)
    yield lab
    lab.kill()
