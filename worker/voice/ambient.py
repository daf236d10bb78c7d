"""Background sound of a place, played by the line beside the agent's voice.

The clips come with livekit-agents. An agent without ambient sound pays nothing for it.
"""

from __future__ import annotations

import asyncio
import logging

from livekit.agents import AudioConfig, BackgroundAudioPlayer, BuiltinAudioClip

from core.models import AgentConfig
from worker.line import Line, LineError

log = logging.getLogger(__name__)

LEVEL_DBFS = -42.0
"""RMS of every clip when played: some 20 dB below telephone speech."""

# Each clip, and its RMS in dBFS, measured over the whole clip.
_CLIPS = {
    "office": (BuiltinAudioClip.OFFICE_AMBIENCE, -55.4),
    "coffee-shop": (BuiltinAudioClip.CROWDED_ROOM, -26.0),
    "outdoor": (BuiltinAudioClip.CITY_AMBIENCE, -35.9),
}
_FADE_S = 1.0
_STOP_WITHIN_S = 2.0


class AmbientSound:
    """Plays from ``start`` to ``stop``. Errors are logged, and the call goes on without sound."""

    def __init__(self, sound: str) -> None:
        clip, dbfs = _CLIPS[sound]
        volume = 10 ** ((LEVEL_DBFS - dbfs) / 20)
        self._player = BackgroundAudioPlayer(
            ambient_sound=AudioConfig(clip, volume=volume, fade_in=_FADE_S)
        )
        self._stopped = False

    async def start(self, line: Line) -> None:
        """Start playing on ``line``, unless stopped already."""
        if self._stopped:
            return
        try:
            await line.accompany(self._player)
        except (LineError, TimeoutError, RuntimeError) as error:
            log.warning("no ambient sound", extra={"error": str(error)})

    async def stop(self) -> None:
        """Stop, and wait until nothing more is sent. Idempotent."""
        self._stopped = True
        try:
            async with asyncio.timeout(_STOP_WITHIN_S):
                await self._player.aclose()
        except (TimeoutError, RuntimeError) as error:
            log.warning("the ambient sound did not stop", extra={"error": str(error)})


def ambient_sound(config: AgentConfig) -> AmbientSound | None:
    return None if config.ambient_sound == "none" else AmbientSound(config.ambient_sound)
