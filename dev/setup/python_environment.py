"""Installs a lock file into a Python environment of its own, apart from the project's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from dev.process import ManagedProcess, inherited_environment, run_to_end

INSTALL_TIMEOUT_S = 600.0


class InstallFailed(RuntimeError):
    """The environment could not be made; the message ends with the tail of pip's output."""


async def install(
    environment: Path, lock: Path, log: Path, meanwhile: Callable[[float], None]
) -> None:
    """Make the environment, as with ``python -m venv``. Raise InstallFailed.

    It has a pip of its own, which takes longer, only where this Python has none that could install
    into it. ``meanwhile`` is called twice a second with the seconds since the present step began.
    """
    python = str(environment / "bin" / "python")
    venv = [sys.executable, "-m", "venv", "--clear"]
    pip = [python, "-m", "pip"]
    if find_spec("pip") is not None:
        venv.append("--without-pip")
        pip = [sys.executable, "-m", "pip", "--python", python]
    pip += ["install", "--disable-pip-version-check", "--no-input", "--quiet"]
    for command in (
        [*venv, str(environment)],
        [*pip, "--progress-bar", "off", "--require-hashes", "-r", str(lock)],
    ):
        process = ManagedProcess("pip", command, log_path=log, env=inherited_environment())
        try:
            code = await run_to_end(process, timeout_s=INSTALL_TIMEOUT_S, meanwhile=meanwhile)
        except TimeoutError:
            raise InstallFailed(f"it took more than {INSTALL_TIMEOUT_S:g} s") from None
        if code != 0:
            raise InstallFailed("\n  ".join(process.log_text().splitlines()[-10:]))
