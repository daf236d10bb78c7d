"""Gets a phone leg's reports of what was said and heard at the phone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from livekit import rtc

from core.sound.reports import METHOD, TOPIC, SoundReport

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_AGAIN_AFTER_S = 1.0
_TRIP_WITHIN_S = 1.0
_ANSWER_WITHIN_S = 2.0


class SoundReports:
    """Asks for the reports of ``identity`` and passes them on, until ``aclose``.

    Only the bridge's legs report; with any other, ``to`` is never called.
    """

    def __init__(self, room: rtc.Room, identity: str, to: Callable[[SoundReport], None]) -> None:
        self._room = room
        self._identity = identity
        self._to = to
        room.on("data_received", self._received)
        self._asking = asyncio.create_task(self._ask(), name="sound reports")

    async def aclose(self) -> None:
        self._room.off("data_received", self._received)
        self._asking.cancel()
        await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        for _ in range(_ATTEMPTS):
            try:
                # The SDK does not keep its own deadlines while the room's connection is being lost.
                async with asyncio.timeout(_ANSWER_WITHIN_S + _TRIP_WITHIN_S):
                    await self._room.local_participant.perform_rpc(
                        destination_identity=self._identity,
                        method=METHOD,
                        payload="{}",
                        response_timeout=_ANSWER_WITHIN_S,
                        max_round_trip_latency=_TRIP_WITHIN_S,
                    )
                    return
            except rtc.RpcError as error:
                log.debug("no sound reports", extra={"error": error.message})
            except TimeoutError:
                log.debug("no sound reports", extra={"error": "no answer"})
            await asyncio.sleep(_AGAIN_AFTER_S)

    def _received(self, packet: rtc.DataPacket) -> None:
        sender = packet.participant
        if packet.topic != TOPIC or sender is None or sender.identity != self._identity:
            return
        try:
            self._to(SoundReport.decode(packet.data))
        except ValueError as error:
            log.warning("a sound report is not one", extra={"error": str(error)})
