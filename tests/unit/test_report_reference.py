import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.synthetic_run import MS, SyntheticRun, burst_run, jobs_run, mixed_run
from timesplit.analysis import summary
from timesplit.report import write_report
from timesplit.report.reference import main, pages, summary_schema
from timesplit.schema import TABLES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", pages())
def test_the_page_is_what_the_code_makes_of_it(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == pages()[name], (
        "run `python -m timesplit.report.reference docs` and commit what changed"
    )


def test_every_column_of_every_table_is_described() -> None:
    page = pages()["run-folder.md"]
    for table in TABLES.values():
        section = page.partition(f"## `{table.name}/`")[2].partition("\n## ")[0]
        assert all(f"| `{column.name}` |" in section for column in table.columns)


def test_pages_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    main(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"run-folder.md", "summary.schema.json"}


def empty_run(root: Path) -> Path:
    run = SyntheticRun(root, warmup_s=5)
    run.attempt("GET /a", 0, 10 * MS)
    return run.write(lasted=None)


@pytest.mark.parametrize("make", [burst_run, mixed_run, jobs_run, empty_run])
def test_what_is_written_follows_the_published_schema(make: Any, tmp_path: Path) -> None:
    run = make(tmp_path)
    write_report(run)
    schema = json.loads((DOCS / "summary.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((run / "summary.json").read_text("utf-8")), schema)


def test_the_schema_knows_every_field_and_nothing_else() -> None:
    schema = summary_schema()
    for name, definition in {"Summary": schema, **schema["$defs"]}.items():
        record = getattr(summary, name)
        assert is_dataclass(record)
        assert list(definition["properties"]) == [field.name for field in fields(record)]
        assert definition["additionalProperties"] is False
    wrong = {"summary_version": summary.SUMMARY_VERSION + 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, {"properties": schema["properties"]})
