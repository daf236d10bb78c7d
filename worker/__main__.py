"""``python -m worker start``: take calls until told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from core import logs, settings
from core.owner_only import keep_private
from core.settings import Settings
from worker.server import serve

# So long an event loop stands still before livekit-agents says so. It looks five times as often, in
# every job process, idle or not: with its own 100 ms that takes 1 % of a core each, with this 0.4.
_LOOP_BLOCKED_MS = "250"

# Chatty about requests and connections, some of them with what goes over the wire.
_QUIET = ("httpx", "httpx2", "httpcore", "openai", "livekit", "websockets")


def main(arguments: list[str]) -> None:
    if arguments != ["start"]:
        sys.exit("usage: python -m worker start")
    loaded = settings.load()
    missing = _missing(loaded)
    if missing:
        for name in missing:
            print(f"settings: {name}: is required by the worker", file=sys.stderr)
        sys.exit(2)
    logs.configure(loaded, "worker")
    keep_private(loaded)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    # Below "livekit", but what they say is the worker's own log.
    for name in ("livekit.agents", "livekit.plugins"):
        logging.getLogger(name).setLevel(logging.getLogger().level)
    os.environ["LIVEKIT_AGENTS_LOOP_BLOCK_WARN_MS"] = _LOOP_BLOCKED_MS
    if loaded.turn_detection == "vad":
        # Read by livekit-agents where job processes are forked: worker.preload loads the VAD.
        os.environ["LIVEKIT_AGENTS_PRELOAD_LOCAL_INFERENCE"] = "0"
    asyncio.run(serve(loaded))


def _missing(loaded: Settings) -> list[str]:
    names = (
        "livekit_api_key",
        "livekit_api_secret",
        "deepgram_api_key",
        "openai_api_key",
        "cartesia_api_key",
    )
    return [name.upper() for name in names if not getattr(loaded, name)]


if __name__ == "__main__":
    main(sys.argv[1:])
