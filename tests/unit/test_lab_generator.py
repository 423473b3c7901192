import sys
from pathlib import Path

import pytest

from timesplit.lab.generator import command, failure
from timesplit.lab.scenario import Scenario

LOCUST_FRAMES = """Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/lab/.venv/lib/python3.11/site-packages/locust/main.py", line 167, in main
    user_classes, shape_classes = load_locustfile(_locustfile)
                                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
"""


def test_the_scenario_becomes_locusts_options() -> None:
    scenario = Scenario(
        "mixed",
        Path("loadtests/mixed.py"),
        user_classes=("Reader", "Writer"),
        users=20,
        spawn_rate=2.5,
        duration=90,
        processes=2,
    )

    arguments = command(scenario, "http://127.0.0.1:8000")

    assert arguments[:5] == [sys.executable, "-m", "locust", "-f", "loadtests/mixed.py"]
    assert arguments[-2:] == ["Reader", "Writer"]
    text = " ".join(arguments)
    assert "--host http://127.0.0.1:8000 --users 20 --spawn-rate 2.5" in text
    assert "--run-time 90s --processes 2" in text


def test_a_scenario_that_ends_itself_gets_no_run_time() -> None:
    assert "--run-time" not in command(Scenario("bursts", Path("bursts.py"), duration=None), "http://h")


def test_of_a_traceback_the_users_own_last_line_is_told() -> None:
    output = LOCUST_FRAMES + (
        '  File "/home/me/shop.py", line 8, in <module>\n    broken()\n'
        '  File "/home/me/prices.py", line 5, in broken\n    return json.loads("")\n'
        f'  File "{json_file()}", line 346, in loads\n    return _default_decoder.decode(s)\n'
        "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)\n"
    )

    assert failure(output) == (
        "/home/me/prices.py:5: json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
    )


def test_a_syntax_error_is_told_with_its_line() -> None:
    output = LOCUST_FRAMES + (
        '  File "/home/me/shop.py", line 1\n    def f(:\n          ^\nSyntaxError: invalid syntax\n'
    )

    assert failure(output) == "/home/me/shop.py:1: SyntaxError: invalid syntax"


def test_what_locust_itself_says_is_told() -> None:
    output = (
        "[2026-11-22 21:47:57,162] vm/INFO/locust.main: Starting Locust 2.47.0\n"
        "[2026-11-22 21:47:58,453] vm/ERROR/locust.main: Unknown User(s): Shopper\n"
    )

    assert failure(output) == "Unknown User(s): Shopper"


def test_what_our_own_part_of_it_says_is_told() -> None:
    output = "[2026-11-22 21:47:58,453] vm/ERROR/timesplit.loadgen.generator: timesplit: disk full\n"

    assert failure(output) == "disk full"


@pytest.mark.parametrize("output", ["", "Killed\n"])
def test_where_nothing_is_said_there_is_no_reason(output: str) -> None:
    assert failure(output) is None


def json_file() -> str:
    import json

    return json.__file__
