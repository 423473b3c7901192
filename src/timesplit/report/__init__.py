"""Writes a run's report: `requests/`, `summary.json` and `report.html`."""

import json
from dataclasses import asdict
from pathlib import Path

from timesplit.analysis.summarise import summarise
from timesplit.analysis.summary import Summary
from timesplit.report.html import render_html
from timesplit.runfolder import RunFolder

__all__ = ["write_report"]


def write_report(run: Path) -> Summary:
    """Join a run's records, compute its figures, and write `summary.json` and `report.html` beside them.

    Args:
        run: the run folder, or a link to it.

    Raises:
        RunFolderError: it is no run folder, of another schema version, or without client rows.
    """
    summary = summarise(run)
    folder = RunFolder(run.resolve())
    folder.write_text("summary.json", json.dumps(asdict(summary)) + "\n")
    # Text from outside can hold what UTF-8 cannot.
    folder.write_text("report.html", render_html(summary).encode("utf-8", "replace").decode())
    return summary
