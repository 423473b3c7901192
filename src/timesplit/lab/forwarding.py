"""The forwarder that the lab runs beside a service, and where that service's workers put their journals."""

import hashlib
import os
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path

from timesplit.instrumentation.journal import journal_folder
from timesplit.lab.processes import Child, Processes, free_port

HOST = "127.0.0.1"
STOP_SECONDS = 35.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the user has


class Forwarding:
    """A running forwarder.

    Attributes:
        url: where it takes spans.
        journals: folder in memory, of this lab alone.
    """

    def __init__(self, processes: Processes, runs: Path) -> None:
        """Start it; it passes spans on to OTEL_EXPORTER_OTLP_ENDPOINT as the lab itself has it."""
        self._processes = processes
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        self.journals = _folder(processes.state)
        command = [sys.executable, "-m", "timesplit.forwarder", "--port", str(port), "--runs", str(runs)]
        self.child: Child = processes.start("forwarder", [*command, "--journals", str(self.journals)])

    def environment(self) -> dict[str, str]:
        """Return what leads the service's spans and journals here."""
        return {
            "TIMESPLIT_JOURNAL": str(self.journals),
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            # It would win over the general one, and the spans would pass by the forwarder.
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self.url}/v1/traces",
        }

    def is_ready(self) -> bool:
        """Tell whether it takes spans."""
        return answers(f"{self.url}/healthz")

    def stop(self) -> None:
        """Stop it: it has then written everything that there is."""
        self._processes.stop(self.child, STOP_SECONDS)
        shutil.rmtree(self.journals, ignore_errors=True)


def answers(url: str) -> bool:
    """Tell whether a GET of the URL is answered with success."""
    try:
        with _DIRECT.open(url, timeout=2):
            return True
    except OSError:
        return False


def _folder(state: Path) -> Path:
    """Make a folder for journals, where files are in memory; what an earlier lab of this state left is removed."""
    parent = journal_folder().parent
    if not os.access(parent, os.W_OK):
        parent = Path(tempfile.gettempdir())
    folder = parent / f"timesplit-lab-{hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder
