"""Runs the bare worker beside a stack, with the stack's own settings."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

from core.settings import Settings
from dev.process import ManagedProcess, inherited_environment
from dev.stack import Stack
from dev.stack.environment import as_variables
from dev.stack.options import ROOT

_READY_WITHIN_S = 60.0


@contextlib.asynccontextmanager
async def bare_worker(stack: Stack) -> AsyncIterator[ManagedProcess]:
    """Run the bare worker, registered with the stack's LiveKit server. Raise ProcessFailed."""
    env = inherited_environment(without=list(Settings.model_fields))
    env |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **as_variables(stack.settings)}
    process = ManagedProcess(
        "bare-worker",
        [sys.executable, "-m", "dev.peers.bare_worker", "start"],
        env=env,
        log_path=stack.run_dir / "bare-worker.log",
    )

    async def registered() -> bool:
        return "registered worker" in process.log_text()

    await process.start()
    try:
        await process.wait_ready(registered, timeout_s=_READY_WITHIN_S)
        yield process
    except TimeoutError as error:
        error.add_note(process.log_text()[-3000:])
        raise
    finally:
        await process.kill()
