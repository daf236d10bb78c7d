"""Makes ``.venv`` from a lock file: ``python3 dev/bootstrap.py .venv requirements-dev.txt``.

make runs it before anything is installed, so it imports the standard library only. An
older Python must be able to parse it, so that it can say that it is too old.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

NEEDED = (3, 11)


def main(venv: str, lock: str) -> str | None:
    """Make the environment. Return an error message, or None on success."""
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info < NEEDED:
        needed = f"{NEEDED[0]}.{NEEDED[1]}"
        return (
            f"Switchroom needs Python {needed} or newer; {sys.executable} is {ours}.\n"
            "Install a newer one and name it: make PYTHON=python3.13 …"
        )
    # Checked first: the installation takes minutes and is useless without a livekit-server.
    if (problem := no_livekit_server()) is not None:
        return problem
    started = time.monotonic()
    print(f"creating {venv} with Python {ours}", flush=True)
    # --clear: packages that are no longer in the lock must not stay installed.
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=False)
    if made.returncode != 0:
        return f"{sys.executable} -m venv failed; on Debian and Ubuntu: apt install python3-venv"
    problem = _install(f"{venv}/bin/python", lock, started)
    if problem is None:
        print(f"  installed in {time.monotonic() - started:.0f} s", flush=True)
    return problem


def no_livekit_server() -> str | None:
    """Return why this machine can have no livekit-server; None if it can or a setting names one."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(0, root)
    from dev.process import inherited_environment
    from dev.setup import livekit_server

    name = "LIVEKIT_SERVER_BIN"
    if inherited_environment().get(name):
        return None
    with contextlib.suppress(OSError), open(".env", encoding="utf-8") as file:
        if any(line.startswith(f"{name}=") for line in file):
            return None
    return livekit_server.obstacle()


def _install(python: str, lock: str, started: float) -> str | None:
    with open(lock, encoding="utf-8") as file:
        total = sum("==" in line for line in file)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    with subprocess.Popen(
        [*pip, "--progress-bar", "off", "--require-hashes", "-r", lock],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        tail: list[str] = []
        collected = 0
        interval_s = 0.1 if sys.stdout.isatty() else 5.0
        printed = started
        for line in process.stdout:
            tail = [*tail[-19:], line]
            collected += line.startswith("Collecting ")
            installing = line.startswith("Installing ")
            if installing or time.monotonic() - printed >= interval_s:
                printed = time.monotonic()
                what = "installing" if installing else f"fetched {collected} of about {total}"
                _show(f"  {what} packages, {printed - started:.0f} s")
    if sys.stdout.isatty():
        print()
    if process.returncode != 0:
        return f"{''.join(tail)}\npip could not install {lock}"
    return None


def _show(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r{text:<60}", end="", flush=True)
    else:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
