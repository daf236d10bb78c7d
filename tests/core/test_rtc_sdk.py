"""The LiveKit SDK as our processes load it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dev.stack.options import HOST
from dev.stack.ports import PORTS

pytestmark = pytest.mark.unit

# Prints the SDK's log, as far as it reaches Python, of a join that fails: nothing listens.
JOIN = """
import asyncio, logging, sys
from livekit import rtc
from core import rtc_sdk

logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(name)s %(message)s")

async def main():
    await rtc_sdk.load()
    try:
        await rtc.Room().connect(sys.argv[1], "no token")
    except rtc.ConnectError:
        print("refused")

asyncio.run(main())
"""
OF_THE_JOIN = "livekit_signaling"


def join(**variables: str) -> tuple[str, str]:
    """Return stdout and stderr. All of the SDK's log that reaches Python is on stdout."""
    env = {**os.environ, "LIVEKIT_RTC_DEBUG": "1", **variables}
    port = PORTS.take(HOST)
    try:
        command = [sys.executable, "-c", JOIN, f"ws://{HOST}:{port}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    finally:
        PORTS.give_back(port)
    assert "refused" in done.stdout, done.stderr
    return done.stdout, done.stderr


def test_its_log_does_not_go_through_python() -> None:
    output, _ = join(RUST_LOG="off")
    assert OF_THE_JOIN not in output


def test_its_log_can_be_asked_for() -> None:
    output, errors = join(RUST_LOG="debug")
    assert OF_THE_JOIN not in output
    assert OF_THE_JOIN in errors
