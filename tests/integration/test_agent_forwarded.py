"""A worker of mode `otel` tells of a request twice: in its journal, and by its spans. It is one row."""

import shutil
import urllib.request
from pathlib import Path

import pytest

from tests.forwarding import Forwarding
from tests.integration.agent_commands import PYTHON, serve_command
from tests.otlp_spans import CLIENT_SPAN, KEY, TRACE, request_of, server_span
from timesplit.instrumentation.journal import Journal
from timesplit.instrumentation.layout import CLOSING
from timesplit.schema import SERVER

INSTANCE = "0123456789abcdef"
MS = 1_000_000


def write(journals: Path) -> None:
    """Write the journal of a worker that served one request."""
    journal = Journal(journals, INSTANCE, {"service": "shop", "traces": "otel"}, slots=16)
    parent = f"00-{TRACE.hex()}-{CLIENT_SPAN.hex()}-01".encode()
    at, number = journal.open(1_000 * MS, parent, CLIENT_SPAN.hex().encode())
    fields = dict.fromkeys((name for name, _ in CLOSING.fields), 0)
    fields |= {"ended": 1_020 * MS, "status": 200, "method": journal.text("GET"), "query_ns": 20 * MS}
    journal.close(at, number, 1_020 * MS, list(fields.values()), [])
    journal.discard()


def test_a_request_that_is_told_of_twice_is_one_row(tmp_path: Path) -> None:
    forwarding = Forwarding(tmp_path, KEY)
    write(tmp_path / "journals")
    url = forwarding.start()
    for instance in (INSTANCE, "f" * 16):  # and a worker that has no journal
        spans = request_of(server_span(instance[:8].encode()), **{"service.instance.id": instance})
        body = spans.SerializeToString()
        head = {"Content-Type": "application/x-protobuf"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/traces", body, head), timeout=20).close()
    forwarding.stop()
    rows = {row["instance"]: row for row in forwarding.rows(SERVER)}
    assert len(rows) == len(forwarding.rows(SERVER)) == 2
    assert rows[INSTANCE]["query_ns"] == 20 * MS
    assert [row["written"] for row in forwarding.hosts("worker") if row["instance"] == INSTANCE] == [1]


@pytest.mark.parametrize("ledger", ["on", "off"])
def test_an_application_that_was_not_changed_gets_spans(ledger: str, tmp_path: Path) -> None:
    """With the ledger, rows are made of the journal; without it, of the spans."""
    shutil.copy(Path(__file__).with_name("agent_apps.py"), tmp_path)
    forwarding = Forwarding(tmp_path, KEY)
    url = forwarding.start()
    env = {"TIMESPLIT_TRACES": "otel", "TIMESPLIT": ledger, "OTEL_EXPORTER_OTLP_ENDPOINT": url}
    uvicorn = [PYTHON, "-m", "uvicorn", "--port", "{port}", "--log-level", "critical"]
    with serve_command([*uvicorn, "agent_apps:wrapped"], tmp_path, env) as service:
        answers = [service.get("/users/7") for _ in range(3)]
    forwarding.stop()
    rows = forwarding.rows(SERVER, tmp_path / "unclaimed")
    found = [row for row in rows if row["http_route"] == "/users/{user_id}"]
    assert len(found) == len(answers)
    assert all(row["route_ns"] is not None for row in found) is (ledger == "on")
