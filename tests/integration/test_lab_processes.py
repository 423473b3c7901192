import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from timesplit.errors import StartError, UsageError
from timesplit.lab import guardian
from timesplit.lab.processes import Processes

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(99)
"""
FAMILY = "sleep 99 & echo $!; wait"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as processes:
        yield processes


def test_a_child_leads_a_group_of_its_own_and_logs_to_a_file_of_its_own(lab: Processes) -> None:
    child = lab.start("greeter", ["sh", "-c", "echo $GREETING; sleep 99"], env={"GREETING": "hello"})
    child.wait_ready(lambda: child.output() == "hello\n")

    assert os.getpgid(child.pid) == child.pid
    assert child.log.read_text() == "hello\n"


def test_the_error_of_a_start_carries_the_last_lines_of_that_start_only(lab: Processes) -> None:
    first = lab.start("broken", ["sh", "-c", "echo old"])
    first.wait()
    child = lab.start("broken", ["sh", "-c", "seq 1 99; exit 3"])

    with pytest.raises(StartError) as error:
        child.wait_ready(lambda: False)

    message = str(error.value)
    assert "broken ended with exit code 3 before it was ready" in message
    assert str(child.log) in message
    assert "\n  99" in message
    assert "\n  50" not in message
    assert "old" not in message


def test_a_command_that_is_not_there_is_said_so(lab: Processes) -> None:
    child = lab.start("absent", ["no-such-program"])

    with pytest.raises(StartError, match="no-such-program"):
        child.wait_ready(lambda: False)


def test_a_child_that_is_never_ready_is_an_error(lab: Processes) -> None:
    child = lab.start("slow", ["sleep", "99"])

    with pytest.raises(StartError, match=r"slow was not ready after 0\.2 s"):
        child.wait_ready(lambda: False, seconds=0.2)


def test_a_command_that_fails_is_an_error_with_its_exit_code(lab: Processes) -> None:
    lab.start("good", ["true"]).finish()

    with pytest.raises(StartError, match=r"bad failed with exit code 4; .*\n  why$"):
        lab.start("bad", ["sh", "-c", "echo why; exit 4"]).finish()


def test_a_command_that_does_not_end_is_an_error(lab: Processes) -> None:
    with pytest.raises(StartError, match=r"endless was not done after 0\.1 s"):
        lab.start("endless", ["sleep", "99"]).finish(0.1)


def test_children_are_stopped_youngest_first(lab: Processes, tmp_path: Path) -> None:
    for name in ("old", "young"):
        script = f"trap 'echo {name} >> {tmp_path}/ends; exit' TERM; echo up; while :; do sleep 0.01; done"
        child = lab.start(name, ["sh", "-c", script])
        child.wait_ready(lambda child=child: child.output() == "up\n")  # type: ignore[misc]  # bound at once

    lab.stop_all()

    assert (tmp_path / "ends").read_text() == "young\nold\n"


def test_a_child_that_ignores_the_signal_is_ended_by_force(lab: Processes) -> None:
    child = lab.start("stubborn", [sys.executable, "-c", STUBBORN])
    child.wait_ready(lambda: child.output() == "up\n")

    assert lab.stop(child, seconds=0.2) == -signal.SIGKILL


def test_what_a_dead_child_leaves_in_its_group_is_ended_too(lab: Processes) -> None:
    child = lab.start("family", ["sh", "-c", FAMILY])
    child.wait_ready(lambda: child.output().endswith("\n"))
    child.signal(signal.SIGKILL)
    child.wait()

    lab.stop(child)

    assert_gone(int(child.output()))


def test_one_state_folder_serves_one_lab_at_a_time(lab: Processes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"another timesplit works here .process {os.getpid()}"):
        Processes(tmp_path)


def test_a_state_folder_is_free_again_after_its_lab_and_the_logs_begin_anew(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with Processes(tmp_path) as processes:
            child = processes.start("once", ["echo", text])
            child.wait()

    assert child.log.read_text() == "second\n"


def test_all_children_end_when_the_lab_is_killed_and_the_next_lab_waits_for_that(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from timesplit.lab.processes import Processes
lab = Processes(Path({str(tmp_path)!r}))
family = lab.start("family", ["sh", "-c", {FAMILY!r}])
slow = lab.start("slow", ["sh", "-c", "trap 'sleep 0.3; exit' TERM; echo up; while :; do sleep 0.01; done"])
family.wait_ready(lambda: family.output().endswith("\\n"))
slow.wait_ready(lambda: slow.output() == "up\\n")
print(family.pid, slow.pid, family.output().strip(), flush=True)
sys.stdin.read()
"""
    killed = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert killed.stdout is not None
    pids = [int(pid) for pid in killed.stdout.readline().split()]
    assert len(pids) == 3
    killed.kill()
    killed.communicate()

    with Processes(tmp_path):
        for pid in pids:
            assert_gone(pid)


def test_a_child_is_known_to_the_guardian_before_it_becomes_its_program(tmp_path: Path) -> None:
    """Kills the lab at many moments of its start, and looks for what is left."""
    script = f"""
from pathlib import Path
from timesplit.lab.processes import Processes
lab = Processes(Path({str(tmp_path)!r}))
print("up", flush=True)
while True:
    lab.start("{tmp_path.name}", ["sh", "-c", "sleep 99 # {tmp_path}"])
"""
    for attempt in range(4):
        killed = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert killed.stdout is not None
        killed.stdout.readline()
        time.sleep(0.002 * attempt)
        killed.kill()
        killed.communicate()
        with Processes(tmp_path):
            left = [p for p in psutil.process_iter(["cmdline"]) if f"# {tmp_path}" in str(p.info["cmdline"])]
        assert left == []


def test_the_guardian_ends_by_force_what_does_not_end_gently(
    lab: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian, "GENTLE_SECONDS", 0.2)
    child = lab.start("stubborn", [sys.executable, "-c", STUBBORN])
    child.wait_ready(lambda: child.output() == "up\n")

    guardian.end({child.pid: signal.SIGTERM})

    assert child.wait() == -signal.SIGKILL


def assert_gone(pid: int) -> None:
    """Fail if the process is still there; a zombie, which nobody may reap in a container, is not."""
    deadline = time.monotonic() + 2
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)
