"""The lab's child processes: each in a group and with a log of its own, and none outlives the lab."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from timesplit.errors import StartError, UsageError
from timesplit.lab import guardian

STOP_SECONDS = 10.0
TAIL_LINES = 15
# The child reports itself to the guardian before it becomes its program: no moment is left in which the lab
# could be killed and the child be unknown. (A preexec_fn would do the same, but not beside threads.)
_LAUNCH = 'echo "$$ $0" >&0 && exec "$@" </dev/null'


class Child:
    """A process that the lab started, leader of a process group: when it ends, so does the rest of the group.

    That is done as soon as its end is seen: later, its process id could have become another process's.
    """

    def __init__(
        self,
        name: str,
        popen: subprocess.Popen[bytes],
        log: Path,
        log_offset: int,
        forget: Callable[[int], None],
    ) -> None:
        self.name = name
        self.log = log
        self._popen = popen
        self._log_offset = log_offset
        self._forget = forget
        self._ended = False

    @property
    def pid(self) -> int:
        """Its process id, and the id of its process group."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal as in `subprocess`; None while it runs."""
        if self._popen.poll() is not None:
            self._end_group()
        return self._popen.returncode

    def wait(self, seconds: float | None = None) -> int:
        """Wait for its end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after that many seconds.
        """
        exit_code = self._popen.wait(seconds)
        self._end_group()
        return exit_code

    def finish(self, seconds: float = 60.0) -> None:
        """Wait for a command that is meant to end.

        Raises:
            StartError: it failed, or still runs after that many seconds.
        """
        try:
            exit_code = self.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.start_error(f"was not done after {seconds:g} s") from None
        if exit_code:
            raise self.start_error(f"failed with exit code {exit_code}")

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs; to the process alone, not its group."""
        if self.exit_code is None:
            self._popen.send_signal(number)

    def stop(self, number: int, seconds: float) -> int:
        """End it with that signal, after `seconds` by force; return the exit code."""
        self.signal(number)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self.wait()

    def _end_group(self) -> None:
        if self._ended:
            return
        self._ended = True
        # PermissionError: on macOS, a group of which only zombies are left.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._forget(self.pid)

    def output(self) -> str:
        """Return what it has printed since it started."""
        with self.log.open("rb") as file:
            file.seek(self._log_offset)
            return file.read().decode(errors="replace")

    def wait_ready(self, ready: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until `ready()` holds.

        Raises:
            StartError: it ended, or was not ready in time; the message has the last lines of its output.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.exit_code is not None:
                raise self.start_error(f"ended with exit code {self.exit_code} before it was ready")
            if time.monotonic() > deadline:
                raise self.start_error(f"was not ready after {seconds:g} s")
            time.sleep(0.05)

    def start_error(self, what: str) -> StartError:
        """Make the error that says what happened to it, with the last lines of its output."""
        tail = "\n".join(f"  {line}" for line in self.output().splitlines()[-TAIL_LINES:])
        return StartError(f"{self.name} {what}; its log is {self.log}" + (f"\n{tail}" if tail else ""))


class Processes:
    """All children of one lab; a context manager that stops them, the youngest first.

    They end with the lab, also when it is killed: see `timesplit.lab.guardian`.
    """

    def __init__(self, state: Path) -> None:
        """Take the state folder, in which one lab works at a time.

        Args:
            state: folder for logs, data and the lock; made if it is not there.

        Raises:
            UsageError: another lab works there.
        """
        self.state = state
        self._logs = state / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._children: dict[Child, int] = {}
        with _lock(state / "lock") as lock:
            for log in self._logs.iterdir():
                log.unlink()
            # The guardian inherits the lock: a next lab has to wait until this one's children are gone.
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", guardian.__file__],
                stdin=subprocess.PIPE,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stop_signal: int = signal.SIGTERM,
    ) -> Child:
        """Start a process; its output goes to `logs/<name>.log` in the state folder.

        Args:
            name: what it is called in messages and as log file; a second start appends to the log.
            argv: the command.
            env: variables beside, or instead of, those of the lab.
            user: system user that it runs as; only root can choose.
            stop_signal: what makes it end gently.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            offset = output.tell()  # before the child has it: they share the position
            popen = subprocess.Popen(
                ["sh", "-c", _LAUNCH, str(int(stop_signal)), *map(str, argv)],
                stdin=self._guardian.stdin,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                user=user,
                group=None if user is None else _group_of(user),
                extra_groups=None if user is None else [],
                start_new_session=True,
            )
            child = Child(name, popen, log, offset, self._forget)
        self._children[child] = stop_signal
        return child

    def stop(self, child: Child, seconds: float = STOP_SECONDS) -> int:
        """End a child gently, after `seconds` by force; return its exit code."""
        return child.stop(self._children.pop(child, signal.SIGTERM), seconds)

    def stop_all(self) -> None:
        """Stop all children, the youngest first."""
        for child in reversed(tuple(self._children)):
            self.stop(child)

    def _forget(self, pid: int) -> None:
        """Take it off the guardian's list: its process id can now become another process's."""
        assert self._guardian.stdin is not None
        with suppress(BrokenPipeError):
            os.write(self._guardian.stdin.fileno(), b"%d 0\n" % pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop_all()
        finally:
            # Where stopping was itself interrupted, the guardian does the rest.
            assert self._guardian.stdin is not None
            self._guardian.stdin.close()
            self._guardian.wait()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _lock(path: Path) -> IO[str]:
    file = path.open("a+")
    deadline = time.monotonic() + guardian.GENTLE_SECONDS + 5
    while not _try_lock(file):
        file.seek(0)
        holder = file.read().strip()
        if _runs(holder) or time.monotonic() > deadline:
            file.close()
            raise UsageError(
                f"{path.parent}: another timesplit works here (process {holder}); stop it first, "
                "or drive the service that it runs with --host"
            )
        time.sleep(0.1)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _group_of(user: str) -> int:
    import pwd  # only for root, and not on every platform

    return pwd.getpwnam(user).pw_gid
