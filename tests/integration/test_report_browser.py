import shutil
import subprocess
from pathlib import Path

import pytest

from tests.synthetic_run import burst_run, jobs_run, mixed_run
from timesplit.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def console_of(page: Path, profile: Path, *, dark: bool = False) -> list[str]:
    """Open a page in headless Chromium and return what it says on its console."""
    assert CHROMIUM
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--window-size=1280,900",
        f"--screenshot={profile / 'page.png'}",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert (profile / "page.png").stat().st_size > 1_000
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """An empty browser profile."""
    folder = tmp_path / "profile"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("make", [burst_run, mixed_run, jobs_run])
def test_a_report_opens_without_a_complaint(make: object, tmp_path: Path, profile: Path) -> None:
    assert callable(make)
    run = make(tmp_path / "runs")
    write_report(run)
    assert console_of(run / "report.html", profile, dark=make is mixed_run) == []


def test_a_complaint_would_be_seen(tmp_path: Path, profile: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
        "<img src='http://127.0.0.1:9/x.png'>"
    )
    assert any("Content Security Policy" in line for line in console_of(page, profile))
