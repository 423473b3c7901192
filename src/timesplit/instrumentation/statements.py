"""What an SQL statement does, in a word or two: `SELECT users`. Never a value of it."""

import re
from functools import lru_cache

READ = 4000  # characters of a statement that are looked at: the table's name is near its start
# What opens, closes and divides transactions: drivers send these by themselves, so they are not counted as queries.
TRANSACTION = frozenset(
    ("ABORT", "BEGIN", "COMMIT", "END", "PREPARE", "RELEASE", "ROLLBACK", "SAVEPOINT", "SET", "START")
)

_HIDDEN = re.compile(
    r"""--[^\n]* | /\*.*?(?:\*/|\Z)             # comments
      | [EeBbXxNn]?'(?:[^'\\]|''|\\.)*(?:'|\Z)  # values, also one that is cut off
      | \$(\w*)\$.*?(?:\$\1\$|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_INNER = re.compile(r"(?<!\w)(?!(?:from|join|into|update|table)\b)(\w+)\s*\([^()]*\)", re.IGNORECASE)
_VERB = re.compile(r"[\s(;]*([a-zA-Z]+)")
_NAME = r'((?:[^\W\d][\w$]*|"[^"\n]{1,63}"|`[^`\n]{1,63}`)(?:\.(?:[\w$]+|"[^"\n]{1,63}"|`[^`\n]{1,63}`))*)'
_TABLE = {
    verb: re.compile(rf"\b{before}\s+{_NAME}", re.IGNORECASE)
    for verb, before in {
        "SELECT": r"from(?:\s+only)?",
        "DELETE": r"from(?:\s+only)?",
        "INSERT": "into",
        "REPLACE": "into",
        "MERGE": "into",
        "UPDATE": r"update(?:\s+only)?",
        "COPY": "copy",
        "CALL": "call",
        "TRUNCATE": r"truncate(?:\s+table)?(?:\s+only)?",
    }.items()
}
_MAIN = re.compile(r"\b(select|insert|update|delete|merge)\b", re.IGNORECASE)
_FUNCTION = re.compile(r"\s*([a-zA-Z_][\w.]*)\s*\(")


@lru_cache(maxsize=1024)
def label_of(statement: str) -> str:
    """Return verb and table of a statement, or verb and function where it reads no table; empty if unknown."""
    text = _HIDDEN.sub(" ", statement[:READ])
    found = _VERB.match(text)
    if found is None:
        return ""
    verb, rest = found[1].upper(), text[found.end() :]
    flat = _flat(text)
    if verb == "WITH":
        main = _MAIN.search(flat)
        if main is None:
            return verb
        verb, rest = main[1].upper(), flat[main.end() :]
        flat = flat[main.start() :]
    table = _TABLE[verb].search(flat) if verb in _TABLE else None
    if table is not None:
        return f"{verb} {_plain(table[1])}"
    called = _FUNCTION.match(rest) if verb == "SELECT" else None
    return f"{verb} {called[1]}" if called else verb


def is_counted(label: str) -> bool:
    """Tell whether a statement with this label counts as a query."""
    return label.partition(" ")[0] not in TRANSACTION


def _flat(text: str) -> str:
    """Leave out what is in parentheses, innermost first, but for a derived table."""
    for _ in range(20):
        shorter = _INNER.sub(r"\1 ", text)
        if shorter == text:
            break
        text = shorter
    return text


def _plain(name: str) -> str:
    return name.replace('"', "").replace("`", "")
