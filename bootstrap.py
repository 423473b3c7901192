"""Make `.venv` with all that the lab, the demo service and the tests need: `python3 bootstrap.py`.

Needs only python3 and pip: no root, no compiler, no ensurepip, and nothing outside this folder is written.
Runs again without network, at once, as long as the pins have not changed.
"""

import hashlib
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / ".bootstrapped"
REQUIREMENTS = ROOT / "requirements.txt"
OLDEST, NEWEST = (3, 11), (3, 14)


def main() -> None:
    """Bring `.venv` up to date, or say in one line why that cannot work here."""
    problem = unfit()
    if problem:
        sys.exit(f"bootstrap: {problem}")
    if STAMP.is_file() and STAMP.read_text() == fingerprint():
        return
    print(f"setting up {ENVIRONMENT} (some minutes the first time)", flush=True)
    # Without pip inside: Debian's python3 has no ensurepip, and `pip --python` needs none there.
    venv.create(ENVIRONMENT, clear=ENVIRONMENT.exists(), symlinks=True, with_pip=False)
    pip("--require-hashes", "--only-binary", ":all:", "--requirement", str(REQUIREMENTS))
    pip("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    STAMP.write_text(fingerprint())


def unfit() -> str | None:
    """Tell in one line why this machine cannot run the lab, or return None."""
    found = sys.version_info[:2]
    if os.name != "posix":
        return "Windows is not supported (gunicorn needs fork): use Linux, macOS or WSL"
    if sys.platform == "linux" and platform.libc_ver()[0] != "glibc":
        return "musl (Alpine) is not supported: PostgreSQL's wheel needs glibc; use a Debian-based image"
    if not OLDEST <= found <= NEWEST or sys.implementation.name != "cpython":
        have = f"{sys.implementation.name} {found[0]}.{found[1]}"
        return f"needs CPython 3.{OLDEST[1]} to 3.{NEWEST[1]}, this is {have}"
    pip_there = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if pip_there.returncode:
        return f"{sys.executable} has no pip: install it (Debian: apt-get install python3-pip)"
    return None


def fingerprint() -> str:
    """Return what the environment depends on: the pins, the installed commands, interpreter and place."""
    import tomllib  # here, so that an older Python still gets its one clear line from unfit()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + repr(project).encode())
    return f"{digest.hexdigest()} {sys.version} {ROOT}"


def pip(*arguments: str) -> None:
    """Run `pip install` into the environment, its cache inside this folder."""
    command = [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "--quiet"]
    environment = {"PIP_CACHE_DIR": str(ROOT / ".cache" / "pip"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    finished = subprocess.run([*command, *arguments], env={**os.environ, **environment}, check=False)
    if finished.returncode:
        sys.exit(f"bootstrap: pip failed (exit {finished.returncode}); its words are above")


if __name__ == "__main__":
    main()
