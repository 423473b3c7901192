import pytest
from hypothesis import given
from hypothesis import strategies as st

from timesplit.instrumentation.statements import is_counted, label_of


@pytest.mark.parametrize(
    ("statement", "label"),
    [
        ("SELECT a, b FROM users WHERE id = $1", "SELECT users"),
        ("select pg_sleep(0.05)", "SELECT pg_sleep"),
        ("SELECT 1", "SELECT"),
        ("SELECT extract(epoch FROM created) FROM events", "SELECT events"),
        ("SELECT count(*) FROM (SELECT users.id FROM users WHERE f(g(1)) = 2) AS anon_1", "SELECT users"),
        ("(SELECT 1 FROM a) UNION (SELECT 2 FROM b)", "SELECT a"),
        ("WITH x AS (SELECT * FROM a WHERE b IN (1, 2)) SELECT y FROM x", "SELECT x"),
        ("WITH x AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM x", "INSERT b"),
        ('INSERT INTO public."Orders" (a, b) VALUES (1, 2)', "INSERT public.Orders"),
        ("insert into `t` select a from b", "INSERT t"),
        ("UPDATE ONLY users SET a = 1", "UPDATE users"),
        ("DELETE FROM users", "DELETE users"),
        ("COPY users FROM STDIN", "COPY users"),
        ("/* from the application */ -- from a line\n COMMIT;", "COMMIT"),
        ("  BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN"),
        ("", ""),
        ("42", ""),
    ],
)
def test_a_label_is_verb_and_table(statement: str, label: str) -> None:
    assert label_of(statement) == label


@given(st.text("abc '\\$-/*\"\n", max_size=30))
def test_no_value_is_in_a_label(value: str) -> None:
    quoted = "'" + ("from secret " + value).replace("\\", "").replace("'", "''") + "'"
    assert "secret" not in label_of(f"SELECT {quoted} FROM users WHERE name = {quoted}")
    assert "secret" not in label_of(f"INSERT INTO users VALUES ({quoted}, {'x' * 5000}")


@given(st.text(max_size=200))
def test_any_text_has_a_label(statement: str) -> None:
    assert len(label_of(statement)) <= len(statement) + 1


def test_a_long_statement_is_cut_not_searched_for_ever() -> None:
    assert label_of("INSERT INTO users VALUES " + "(1, '" * 100_000) == "INSERT users"


@pytest.mark.parametrize(
    ("label", "counted"), [("SELECT users", True), ("SAVEPOINT", False), ("COMMIT", False)]
)
def test_what_drivers_send_by_themselves_is_not_counted(label: str, counted: bool) -> None:
    assert is_counted(label) is counted
