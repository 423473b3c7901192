"""Imported by every Python program that starts with this folder on its path; then by whoever was meant to be.

Any Python runs this, of whatever age, so it is written for all of them; and no program must fail because of it.
"""

import os
import sys

if sys.version_info >= (3, 11):  # noqa: UP036  # older Pythons run this file too
    try:
        import timesplit_start  # type: ignore[import-not-found]  # beside this file, on the path by its folder

        timesplit_start.wait()
    except Exception as error:
        if os.environ.get("TIMESPLIT_DEBUG"):
            sys.stderr.write("timesplit: not loaded: %s: %s\n" % (type(error).__name__, error))  # noqa: UP031  # any age

if sys.version_info >= (3, 5):  # noqa: UP036  # likewise
    # The one that would have been found without us: the system's, the environment's, another tool's. What it raises
    # is its own. A copy of this folder is passed over, or the two would call each other.
    from importlib.machinery import PathFinder

    _elsewhere = [
        place for place in sys.path if not os.path.exists(os.path.join(place, "timesplit_start.py"))
    ]
    _spec = PathFinder.find_spec("sitecustomize", _elsewhere)
    if _spec is not None and _spec.loader is not None:
        from importlib.util import module_from_spec

        _module = module_from_spec(_spec)
        sys.modules["sitecustomize"] = _module
        _spec.loader.exec_module(_module)
