from pathlib import Path

import pytest

from timesplit.cli import main


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "loadtests"
    folder.mkdir()
    (folder / "mixed.py").touch()
    (folder / "bursts.py").touch()
    (folder / "bursts.toml").write_text("warmup = 0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "arguments are required: COMMAND"),
        ("rnu mixed", "invalid choice: 'rnu'"),
        ("run", "give either a scenario, such as `timesplit run mixed`, or --path"),
        ("run mixed --path /x", "give either a scenario, such as `timesplit run mixed`, or --path"),
        ("run mixde", "no scenario 'mixde' in loadtests/; did you mean 'mixed'?"),
        ("run elsewhere/x.py", "elsewhere/x.py: there is no such locustfile"),
        ("run --path users/1", "--path users/1: a path begins with /"),
        ("run mixed -u 0", "argument -u/--users: '0' is no whole number above 0"),
        ("run mixed -u ١", "is no whole number above 0"),
        ("run mixed -r nan", "argument -r/--spawn-rate: 'nan' is no number above 0"),
        ("run mixed -t soon", "argument -t/--run-time: 'soon' is no duration; write 90s, 1m30s or 1h"),
        ("run mixed -t 0s", "argument -t/--run-time: must be above 0"),
        ("run bursts -u 5", "bursts has stages of its own: -u, -r and -t do not apply to it"),
        ("run mixed --traces jaeger", "invalid choice: 'jaeger'"),
        ("run mixed", "no demo service in "),
        ("run mixed --host localhost", "--host localhost: must be a URL such as http://127.0.0.1:8000"),
        ("run mixed --host http://h:x", "--host http://h:x: "),
        (
            "run mixed --host http://h --workers 2 --port 1",
            "leave out --workers, --port: with --host the service runs already",
        ),
        (
            "run mixed --python python3",
            "leave out --python: the demo service runs in timesplit's own environment",
        ),
        ("run mixed --app nowhere:app --python /none", "--python /none: there is no such program"),
        ("run mixed --app nowhere:app", "--app nowhere:app: ModuleNotFoundError: No module named 'nowhere'"),
        ("run mixed -- gunicorn x:y", "-- COMMAND: say with --host URL where it will answer"),
        ("serve -- gunicorn x:y", "only `run` and `exec` take a command"),
        ("exec", "exec: which command?"),
        ("serve --port zero", "'zero' is no whole number above 0"),
        ("report nowhere", "nowhere: not a run folder, it has no run.json"),
    ],
)
def test_bad_input_is_one_line_on_standard_error_and_exit_code_2(
    arguments: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("timesplit: ")
    assert told in output.err
    assert output.err.count("\n") == 1
