"""Who this process is: a random id, because process ids repeat across containers.

The journal and, in mode `otel`, the resource of the spans carry the same one, so that the forwarder knows that both
tell of the same requests.
"""

import os
import secrets

_made: dict[int, str] = {}  # by process id: a fork's is not its parent's


def make() -> str:
    """Return a new id, 16 hex digits, for this process's journal."""
    _made.clear()
    return _made.setdefault(os.getpid(), secrets.token_hex(8))


def share() -> str:
    """Return the id of this process's journal; where there is none, or another already shares it, a new one."""
    return _made.pop(os.getpid(), None) or secrets.token_hex(8)
