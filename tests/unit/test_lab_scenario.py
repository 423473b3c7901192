from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timesplit.errors import ScenarioError
from timesplit.lab.scenario import Fault, Scenario, find_scenario, parse_duration


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("bursts", "mixed", "_common", "__init__"):
        (tmp_path / f"{name}.py").touch()
    return tmp_path


def test_a_locustfile_without_settings_is_a_scenario_of_default_load(folder: Path) -> None:
    assert find_scenario("mixed", folder) == Scenario("mixed", folder / "mixed.py")


def test_a_path_names_any_locustfile(folder: Path) -> None:
    assert find_scenario(str(folder / "mixed.py")).locustfile == folder / "mixed.py"


def test_settings_are_read_from_the_file_beside_it(folder: Path) -> None:
    (folder / "bursts.toml").write_text(
        """
        title = "The article's test"
        user_classes = ["Bursts"]
        users = 1
        warmup = 0
        workers = 1
        in_process = true
        service = { THREAD_TOKENS = 40 }
        [[fault]]
        at = 2.5
        process = "job-worker"
        restart = true
        """
    )

    assert find_scenario("bursts", folder) == Scenario(
        "bursts",
        folder / "bursts.py",
        title="The article's test",
        user_classes=("Bursts",),
        users=1,
        duration=None,
        warmup=0,
        workers=1,
        in_process=True,
        service={"THREAD_TOKENS": "40"},
        faults=(Fault(2.5, "job-worker", restart=True),),
    )


def test_an_unknown_scenario_is_told_with_the_closest_name(folder: Path) -> None:
    with pytest.raises(ScenarioError, match=r"no scenario 'burst' in .*/; did you mean 'bursts'\?$"):
        find_scenario("burst", folder)


def test_an_unknown_scenario_like_no_other_is_told_with_all_names(folder: Path) -> None:
    with pytest.raises(ScenarioError, match=r"there are: bursts, mixed$"):
        find_scenario("qqq", folder)


def test_a_folder_without_scenarios_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="give the path of a locustfile"):
        find_scenario("mixed", tmp_path)


def test_a_path_without_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"nowhere\.py: there is no such locustfile"):
        find_scenario(str(tmp_path / "nowhere.py"))


def test_all_problems_of_the_settings_are_told_at_once(folder: Path) -> None:
    (folder / "mixed.toml").write_text(
        """
        users = 0
        spawn_rate = true
        duratoin = 5
        zebra = 1
        warmup = inf
        service = { POOL = [1] }
        [[fault]]
        process = "postgres"
        sginal = "KILL"
        """
    )

    with pytest.raises(ScenarioError) as error:
        find_scenario("mixed", folder)

    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}/mixed.toml: ")
    assert message.split(": ", 1)[1].split("; ") == [
        "users = 0: must be a whole number, 1 or more",
        "spawn_rate = True: must be a number above 0",
        "duratoin is no setting (did you mean duration?)",
        "zebra is no setting",
        "warmup = inf: must be a number of seconds, 0 or more",
        "service = {'POOL': [1]}: must be a table of environment variables",
        "fault 1: at is missing",
        "fault 1: process = 'postgres': must be one of job-worker, service-worker",
        "fault 1: sginal is no setting (did you mean signal?)",
    ]


def test_settings_that_are_not_toml_are_told_with_the_place(folder: Path) -> None:
    (folder / "mixed.toml").write_text("users = \n")

    with pytest.raises(ScenarioError, match=r"mixed\.toml: not TOML: .*line 1"):
        find_scenario("mixed", folder)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1m30s", 90), ("1h", 3600), ("0.5s", 0.5), ("1h1m1s", 3661)],
)
def test_a_duration_is_written_as_for_locust(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@given(st.text(alphabet="0123456789hms.- ", max_size=8))
def test_what_is_no_duration_is_an_error_and_never_another_duration(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds >= 0
    assert text[0].isdigit()
