"""Sounds of a place behind the agent's voice, played beside it by the line.

The clips are livekit-agents' own. An agent without one has no cost of it.
"""

from __future__ import annotations

import asyncio
import logging

from livekit.agents import AudioConfig, BackgroundAudioPlayer, BuiltinAudioClip

from core.models import AgentConfig
from worker.line import Line, LineError

log = logging.getLogger(__name__)

LEVEL_DBFS = -42.0
"""RMS of every clip as it is played: some 20 dB below telephone speech."""

# Each clip, and its own RMS in dBFS as measured over all of it.
_CLIPS = {
    "office": (BuiltinAudioClip.OFFICE_AMBIENCE, -55.4),
    "coffee-shop": (BuiltinAudioClip.CROWDED_ROOM, -26.0),
    "outdoor": (BuiltinAudioClip.CITY_AMBIENCE, -35.9),
}
_FADE_S = 1.0
_STOP_WITHIN_S = 2.0


class AmbientSound:
    """From ``start`` to ``stop``. What goes wrong is logged; the call goes on without it."""

    def __init__(self, sound: str) -> None:
        clip, dbfs = _CLIPS[sound]
        volume = 10 ** ((LEVEL_DBFS - dbfs) / 20)
        self._player = BackgroundAudioPlayer(
            ambient_sound=AudioConfig(clip, volume=volume, fade_in=_FADE_S)
        )
        self._stopped = False

    async def start(self, line: Line) -> None:
        """Does nothing once it was stopped."""
        if self._stopped:
            return
        try:
            await line.accompany(self._player)
        except (LineError, TimeoutError, RuntimeError) as error:
            log.warning("no ambient sound", extra={"error": str(error)})

    async def stop(self) -> None:
        """Until nothing of it is sent any more. Twice does no harm."""
        self._stopped = True
        try:
            async with asyncio.timeout(_STOP_WITHIN_S):
                await self._player.aclose()
        except (TimeoutError, RuntimeError) as error:
            log.warning("the ambient sound did not stop", extra={"error": str(error)})


def ambient_sound(config: AgentConfig) -> AmbientSound | None:
    return None if config.ambient_sound == "none" else AmbientSound(config.ambient_sound)
