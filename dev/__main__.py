"""``python -m dev stack|demo|bench|setup``: run the system on this machine."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

from core import settings
from dev.process import ProcessFailed
from dev.setup import livekit_server
from dev.setup.livekit_server import LiveKitServerMissing
from dev.stack import serve
from dev.stack.checklist import Checklist
from dev.stack.component import Progress, State

Command = Callable[[argparse.Namespace], Coroutine[None, None, int]]

INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended


def main() -> int:
    arguments = _parser().parse_args()
    command: Command = arguments.command
    try:
        return asyncio.run(_until_signal(command(arguments)))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (LiveKitServerMissing, ProcessFailed) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


async def _until_signal(command: Coroutine[None, None, int]) -> int:
    """Run the command. Ctrl-C, SIGTERM or a closed terminal cancels it, so that it cleans up.

    Ctrl-C needs a handler of its own: Python installs none if the parent ignores SIGINT, as a
    shell does for background jobs.
    """
    task = asyncio.create_task(command)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return INTERRUPTED


async def _setup(_: argparse.Namespace) -> int:
    """Find a livekit-server, or build one."""
    with Checklist() as checklist:

        def report(line: str) -> None:
            checklist(Progress("livekit-server", State.STARTING, detail=line))

        configured = settings.load().livekit_server_bin
        livekit_server.remember(configured)
        server = await livekit_server.ensure(configured, report=report)
    if server.origin == "built":
        print(f"livekit-server built: {server.path}")
    return 0


async def _stack(arguments: argparse.Namespace) -> int:
    """Run the whole system until Ctrl-C, and print every address."""
    return await serve.run(settings.load(), keep=arguments.keep)


async def _demo(arguments: argparse.Namespace) -> int:
    """Start the whole system and hold one phone call."""
    from dev import demo

    return await demo.run(settings.load(), phone=arguments.phone, picture=arguments.picture)


async def _bench(_: argparse.Namespace) -> int:
    """Run all benchmarks and write docs/benchmarks.md."""
    from dev import bench

    return await bench.run(settings.load())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dev", description="Run Switchroom on this machine."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, command: Command) -> argparse.ArgumentParser:
        text = (command.__doc__ or "").rstrip(".")
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    stack = add("stack", _stack)
    stack.add_argument("--keep", action="store_true", help="keep logs and data")
    demo = add("demo", _demo)
    demo.add_argument("--phone", metavar="sip:USER@HOST", help="call this softphone instead")
    demo.add_argument("--picture", metavar="FILE", type=Path, help="save the output as an SVG")
    add("bench", _bench)
    add("setup", _setup)
    return parser


if __name__ == "__main__":
    sys.exit(main())
