"""What is armed here, what is not, and why: `timesplit doctor`.

To be run by the application's own Python, since what is installed there decides: each library that we know is
imported and hooked, and let go again.
"""

import asyncio
import importlib
import platform
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import timesplit
from timesplit.errors import UsageError
from timesplit.instrumentation import mode, wants_ledger
from timesplit.instrumentation.agent import LIBRARIES, Agent
from timesplit.instrumentation.hooks import Hook
from timesplit.instrumentation.journal import journal_folder
from timesplit.instrumentation.loop import LoopHooks

ARMED: Final = "armed"
_TCP_INFO_BYTES: Final = 60  # up to and with the age of the last data
_LOOPS: Final = ("asyncio", "uvloop")


def examine() -> dict[str, Any]:
    """Return the facts, plain data that JSON can hold. What cannot be said says why.

    Returns:
        `python`, `package` (where timesplit is), `traces` (the mode), `ledger`, `core`, `journal`, `tcp_info`;
        `loops` by name and `hooks`, a list of `name`, `armed`, `why`.
    """
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        "package": str(Path(timesplit.__file__).parent),
        "traces": _said(mode),
        "ledger": _said(_ledger),
        "core": "python",
        "journal": str(journal_folder()),
        "tcp_info": _said(_tcp_info),
        "loops": {name: _said(_loop, name) for name in _LOOPS},
        "hooks": [{"name": hook.name, "armed": hook.armed, "why": hook.why} for hook in _hooks()],
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """Return the facts of `examine` as lines to be printed."""
    rows = [(name, facts[name]) for name in ("python", "package", "traces", "ledger", "core", "journal")]
    rows.append(("TCP_INFO", facts["tcp_info"]))
    rows += [(f"loop {name}", state) for name, state in facts["loops"].items()]
    rows += [(hook["name"], ARMED if hook["armed"] else hook["why"]) for hook in facts["hooks"]]
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {state}" for name, state in rows]


def _said(ask: Callable[..., str], *arguments: str) -> str:
    try:
        return ask(*arguments)
    except ModuleNotFoundError as error:
        return f"not armed: {error.name} is not installed"
    except UsageError as error:
        return str(error)
    except Exception as error:
        return f"not armed: {type(error).__name__}: {error}"


def _ledger() -> str:
    return ARMED if wants_ledger() else "off: TIMESPLIT or TIMESPLIT_TRACES says so"


def _tcp_info() -> str:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        told = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return "there" if len(told) >= _TCP_INFO_BYTES else "not armed: the kernel tells too little"


def _loop(name: str) -> str:
    new: Callable[[], asyncio.AbstractEventLoop] = (
        asyncio.new_event_loop if name == "asyncio" else importlib.import_module(name).new_event_loop
    )
    loop = new()
    try:
        hooks = LoopHooks(loop)
        hooks.arm()
        hooks.disarm()
    finally:
        loop.close()
    return ARMED


def _import(module: str) -> str:
    importlib.import_module(module)
    return ""


def _hooks() -> list[Hook]:
    """Arm all that is installed here, and take it back."""
    agent = Agent()
    missing = [
        Hook(module, armed=False, why=why) for module in sorted(LIBRARIES) if (why := _said(_import, module))
    ]
    try:
        agent.arm()
        return [*agent.hooks.found.values(), *missing]
    finally:
        agent.disarm()


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines(examine())) + "\n")
