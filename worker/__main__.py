"""``python -m worker start``: take calls in rooms until a signal stops the worker; ``streams``:
take sessions on WebSockets."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import uvloop

from core import logs, settings
from core.owner_only import keep_private
from core.settings import Settings
from worker.server import serve

# livekit-agents warns of an event loop that was blocked for this long. It checks five times as
# often, in every job process, idle or not: its default of 100 ms takes 1 % of a core in each, this
# 0.4 %.
_LOOP_BLOCKED_MS = "250"

# They log each request and connection, some of them with the transmitted data.
_QUIET = ("httpx", "httpx2", "httpcore", "openai", "livekit", "websockets")


def main(arguments: list[str]) -> None:
    if arguments not in (["start"], ["streams"]):
        sys.exit("usage: python -m worker start|streams")
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
    # They are children of "livekit", but their messages belong in the worker's log.
    for name in ("livekit.agents", "livekit.plugins"):
        logging.getLogger(name).setLevel(logging.getLogger().level)
    os.environ["LIVEKIT_AGENTS_LOOP_BLOCK_WARN_MS"] = _LOOP_BLOCKED_MS
    if loaded.turn_detection == "vad":
        # livekit-agents reads it where it forks job processes. worker.preload loads the VAD itself.
        os.environ["LIVEKIT_AGENTS_PRELOAD_LOCAL_INFERENCE"] = "0"
    if arguments == ["streams"]:
        # Imported here: each kind of worker loads its own libraries only.
        from worker.streams.server import serve as serve_streams

        return uvloop.run(serve_streams(loaded))
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
