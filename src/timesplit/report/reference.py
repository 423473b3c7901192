"""Reference pages made from the code: `python -m timesplit.report.reference docs`.

`run-folder.md` comes from `schema.py` and `parts.py`, `summary.schema.json` from the dataclasses of
`analysis/summary.py`. A test fails when a page is not what this module makes of the code.
"""

import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from timesplit.analysis.summary import SUMMARY_VERSION, Summary
from timesplit.parts import PARTS
from timesplit.schema import ERRORS, REASONS, SCHEMA_VERSION, TABLES, Table

_SCALARS: Final = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_RUN_JSON: Final = {
    "schema": "version of the records",
    "key": "key of the run, 16 hexadecimal digits: the upper half of its trace ids",
    "scenario, title, question": "what was run: name, and a line each",
    "model": "`closed` or `bursts`",
    "warmup_s": "seconds at the beginning that are cut off",
    "began, ended": "`monotonic` and `utc` in nanoseconds; without `ended` the run was cut short",
    "host, command, versions, git_commit": "what was driven, and with what; no secrets",
    "generators, users, stages": "generator processes, users at most, names of the stages in order",
    "traces": "who made the server spans: `otel`, `off`, or null where the generator does not know",
    "service, faults": "settings of the service and what was broken on purpose, added by the lab",
}
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.+(?:\n {8,}.+)*)", re.MULTILINE)


def pages() -> dict[str, str]:
    """Return the text of each generated page, by file name."""
    schema = json.dumps(summary_schema(), indent=2, ensure_ascii=False)
    return {"run-folder.md": "\n".join(_run_folder()) + "\n", "summary.schema.json": schema + "\n"}


def summary_schema() -> dict[str, Any]:
    """Return the JSON schema of `summary.json`."""
    definitions: dict[str, Any] = {}
    root = _object_schema(Summary, definitions)
    root["properties"]["summary_version"]["const"] = SUMMARY_VERSION
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "timesplit summary.json",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _object_schema(record: type, definitions: dict[str, Any]) -> dict[str, Any]:
    meanings, hints = _meanings(record), get_type_hints(record)
    names = [field.name for field in fields(record)]
    return {
        "description": (inspect.getdoc(record) or "").partition("\n\n")[0].replace("\n", " "),
        "type": "object",
        "properties": {
            name: {**_type_schema(hints[name], definitions), "description": meanings[name]} for name in names
        },
        "required": names,
        "additionalProperties": False,
    }


def _type_schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # known before its fields are read, in case one leads back to it
            definitions[hint.__name__] = _object_schema(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _type_schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1], definitions)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type_schema(each, definitions) for each in arguments]}
    raise TypeError(f"no JSON schema for {hint}: teach it to `_type_schema`")


def _meanings(record: type) -> dict[str, str]:
    """Return what the docstring says of each attribute."""
    _, _, attributes = (inspect.getdoc(record) or "").partition("Attributes:\n")
    return {name: re.sub(r"\s+", " ", text) for name, text in _ATTRIBUTE.findall(attributes)}


def _run_folder() -> Iterator[str]:
    yield "# The run folder\n"
    yield "<!-- Made from src/timesplit/schema.py by `python -m timesplit.report.reference docs`. -->\n"
    yield (
        "A run is a folder, `runs/<UTC time>-<scenario>-<key>/`, and `runs/latest` points at the last one. "
        "Everything after the run reads it and needs no live system.\n"
    )
    yield (
        f"Its tables are folders of Parquet files, schema version {SCHEMA_VERSION}; each file has one writer, is "
        "written aside and renamed into place, and holds at most a few seconds, so a killed writer loses seconds "
        "and not the run. Times are integer nanoseconds of the host's CLOCK_MONOTONIC; durations are integer "
        "nanoseconds and their names end in `_ns`. NULL means unknown, 0 means none. Ids are binary: 16 bytes for "
        "a trace, 8 for a span.\n"
    )
    yield (
        "`run.json` says what was run, where and how. `timesplit report` adds `requests/`, `summary.json` (every "
        "figure; its schema is [summary.schema.json](summary.schema.json)) and `report.html`.\n"
    )
    yield from _word_section("`run.json`", "the folder itself", _RUN_JSON)
    for table in TABLES.values():
        yield from _table_section(table)
    yield from _word_section("Errors of attempts", "column `error` of `client/`", ERRORS)
    yield from _word_section(
        "Reasons without a partner", "column `reason` of `requests/`, and counts", REASONS
    )
    yield "## Parts\n"
    yield "What a request's time is split into; the column of each is its name with `_ns`.\n"
    yield "| part | measured by | charged while |\n|---|---|---|"
    yield from (f"| `{part.name}` | {part.side} | {part.meaning} |" for part in PARTS)


def _table_section(table: Table) -> Iterator[str]:
    yield f"## `{table.name}/`\n"
    yield f"One row per {table.row}. Written by: {table.writer}.\n"
    yield "| column | type | meaning |\n|---|---|---|"
    for column in table.columns:
        kind = column.kind.replace("_", " ") + ("" if column.nullable else ", never NULL")
        yield f"| `{column.name}` | {kind} | {column.meaning} |"
    yield ""


def _word_section(title: str, where: str, words: dict[str, str]) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"In {where}.\n"
    yield "| word | meaning |\n|---|---|"
    for word, meaning in words.items():
        yield f"| {', '.join(f'`{each}`' for each in word.split(', '))} | {meaning} |"
    yield ""


def main(folder: Path) -> None:
    """Write the pages into a folder."""
    for name, text in pages().items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
