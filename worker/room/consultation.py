"""The consultation of a warm transfer in a room: caller on hold, human dialled, briefed, asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from livekit import api, rtc
from livekit.agents import APIError, stt

from core.audio import Pcm
from core.jobs import CallBrief
from core.tasks.alongside import alongside
from core.transfers import TransferResult
from worker.handover import hold_music
from worker.handover.aside import Aside
from worker.handover.briefing import briefing
from worker.line import TransferFailed
from worker.room.far_end import FarEnd
from worker.room.hang_up import send_away
from worker.room.hearing import hear
from worker.room.separation import LIVEKIT_ERRORS, Separation
from worker.room.side_track import SideTrack
from worker.voice.prepared import PreparedSpeech
from worker.voice.yes_no import Answer, by_key, by_words

log = logging.getLogger(__name__)

_DECIDE_WITHIN_S = 20.0  # after the briefing
_BRIEF_WITHIN_S = 90.0
_ACTIVE_WITHIN_S = 5.0
_VERDICT_WITHIN_S = 5.0
_HANG_UP_WITHIN_S = 5.0
# The caller's SIP service learns of the human's track when the worker does, and may subscribe
# a little later.
_SUBSCRIBED_S = 0.3
_LISTEN_RATE = 16_000  # Hz


class RoomConsultation:
    """A worker.line.Consultation with one human about one call."""

    def __init__(
        self,
        brief: CallBrief,
        identity: str,
        *,
        recorded: bool,
        room: rtc.Room,
        livekit: api.LiveKitAPI,
        aside: Aside,
        on_connected: Callable[[], None],
        on_left: Callable[[str], None],
    ) -> None:
        """``identity`` is the human's. ``recorded``: so is their conversation with the caller.
        ``on_left`` gets LiveKit's reason when the human leaves."""
        self._brief = brief
        self._recorded = recorded
        self._config = brief.agent.config
        self._identity = identity
        self._room = room
        self._livekit = livekit
        self._aside = aside
        self._on_connected = on_connected
        self._on_left = on_left
        self._decided: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._separation = Separation(room, livekit, brief.participant_identity, identity)
        self._human = FarEnd(
            room,
            identity,
            inbound=False,
            on_ringing=_told_by_the_gateway,
            on_answered=_told_by_the_gateway,
            on_digit=lambda digit: self._answer(by_key(digit)),
            on_left=lambda _, detail: self._left(detail),
        )

    async def hold(self, ring: Callable[[], Awaitable[TransferResult]]) -> None:
        """Keep the caller on hold until caller and human hear each other.

        ``ring`` has the human dialled, and returns when they have answered or the dial has failed.
        Raises TransferFailed; the human is gone then, and the caller hears the agent again.
        Closes ``aside``.
        """
        async with aclosing(self._aside):
            await self._hold(ring)

    async def _hold(self, ring: Callable[[], Awaitable[TransferResult]]) -> None:
        separation = self._separation
        music = SideTrack(self._room, "hold-music", hold_music.RATE)
        words = SideTrack(self._room, "briefing", self._aside.tts.sample_rate)
        speech = PreparedSpeech(briefing(self._brief, recorded=self._recorded))
        connected = False
        try:
            await music.open()
            separation.divide(())
            await words.open()
            separation.divide([words.sid])
            async with (
                alongside(music.play(hold_music.frames()), "hold music"),
                alongside(self._synthesise(speech), "briefing"),
            ):
                await self._call(ring)
                decision = await self._ask(words, speech)
                if decision != "accepted":
                    raise TransferFailed(decision)
                await separation.connect()
                connected = True
                self._on_connected()
        except (*LIVEKIT_ERRORS, rtc.participant.PublishTrackError) as error:
            log.warning("transfer failed", extra={"problem": type(error).__name__})
            raise TransferFailed("failed") from None
        finally:
            if not connected:
                await self.hang_up()
            await music.aclose()
            await words.aclose()
            if not connected:
                separation.reunite()

    @property
    def present(self) -> bool:
        """True while the human is in the room."""
        return self._human.present

    async def hang_up(self) -> None:
        """Hang up on the human if they are in the room."""
        await send_away(
            self._room, self._livekit, self._identity, told=False, within_s=_HANG_UP_WITHIN_S
        )

    def hear(self, rate: int, piece_ms: int = 20) -> AsyncGenerator[Pcm]:
        """Return the human's audio."""
        return hear(self._room, self._identity, rate, piece_ms)

    def close(self) -> None:
        """Stop watching the human."""
        self._human.close()

    def _left(self, detail: str) -> None:
        self._decide("hung_up")
        self._on_left(detail)

    def _answer(self, answer: Answer | None) -> None:
        """Take the human's answer; None is none."""
        if answer is not None:
            self._decide("accepted" if answer == "yes" else "declined")

    def _decide(self, decision: str) -> None:
        """Record the decision. The first one counts."""
        if not self._decided.done():
            self._decided.set_result(decision)

    # --- the human's phone

    async def _call(self, ring: Callable[[], Awaitable[TransferResult]]) -> None:
        """Wait until the human has answered and hears the agent only."""
        ringing = asyncio.ensure_future(ring())
        try:
            async with alongside(self._keep_apart(), "keep apart"):
                waited: set[asyncio.Future[Any]] = {ringing, self._decided}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            # If the consultation failed before the answer, stop ringing.
            if self._decided.done() and self._decided.result() != "accepted":
                raise TransferFailed(await self._why(ringing))
            result = await ringing
        finally:
            ringing.cancel()
        if result.outcome != "answered":
            raise TransferFailed(result.outcome)
        async with asyncio.timeout(_ACTIVE_WITHIN_S):
            await self._human.answered.wait()
        await self._separation.mute_human()
        await self._separation.let_human_hear()

    async def _why(self, ringing: asyncio.Future[TransferResult]) -> str:
        """Return the reason for a failure before the answer.

        A busy phone leaves the room as one that hangs up does; the gateway's verdict tells which.
        """
        decision = self._decided.result()
        if decision != "hung_up":
            return decision
        await asyncio.wait({ringing}, timeout=_VERDICT_WITHIN_S)
        if not ringing.done():
            return decision
        outcome = ringing.result().outcome
        return decision if outcome == "answered" else outcome

    async def _keep_apart(self) -> None:
        """Separate human and caller from when the human's participant joins, before the answer."""
        published = asyncio.Event()

        def track_published(_: rtc.RemoteTrackPublication, by: rtc.RemoteParticipant) -> None:
            if by.identity == self._identity:
                published.set()

        self._room.on("track_published", track_published)
        try:
            self._human.look()
            await self._human.joined.wait()
            await self._separation.deafen_human()
            await self._separation.mute_human()
            await published.wait()
            await self._separation.mute_human()
            await asyncio.sleep(_SUBSCRIBED_S)
            await self._separation.mute_human()
        except LIVEKIT_ERRORS as error:
            if _not_there(error):
                # The phone refused at once, and its participant has left already.
                return self._decide("hung_up")
            # Caller and human may hear each other, so give up the transfer.
            log.warning("not kept apart", extra={"problem": type(error).__name__})
            self._decide("failed")
        finally:
            self._room.off("track_published", track_published)

    # --- the question, and the answer

    async def _synthesise(self, speech: PreparedSpeech) -> None:
        if await speech.synthesise(self._aside.tts, self._aside.tts_options):
            self._decide("failed")

    async def _ask(self, words: SideTrack, speech: PreparedSpeech) -> str:
        """Return ``accepted`` or the reason against it. Keys count at once, words only after the
        briefing."""
        telling = asyncio.create_task(_tell(words, speech), name="briefing")
        try:
            waited: set[asyncio.Future[Any]] = {telling, self._decided}
            await asyncio.wait(waited, timeout=_BRIEF_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
            if self._decided.done():
                return self._decided.result()
            if not telling.done() or telling.exception() is not None:
                return "failed"
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        async with alongside(self._listen(), "ask the human"):
            await asyncio.wait({self._decided}, timeout=_DECIDE_WITHIN_S)
        return self._decided.result() if self._decided.done() else "not_accepted"

    async def _listen(self) -> None:
        """Listen to the human, outside the session, which hears the caller only."""
        track = self._track()
        if track is None:
            return
        try:
            async with self._aside.stt.stream(conn_options=self._aside.stt_options) as ear:
                async with alongside(_hear(track, ear), "hear the human"):
                    async for event in ear:
                        for said in event.alternatives[:1]:
                            self._answer(by_words(said.text, self._config.language))
        except APIError as error:
            log.warning("the human can only press keys", extra={"problem": type(error).__name__})

    def _track(self) -> rtc.RemoteAudioTrack | None:
        human = self._room.remote_participants.get(self._identity)
        if human is None:
            return None
        tracks = (publication.track for publication in human.track_publications.values())
        return next((track for track in tracks if isinstance(track, rtc.RemoteAudioTrack)), None)


def _not_there(error: Exception) -> bool:
    return getattr(error, "code", "") == api.TwirpErrorCode.NOT_FOUND


async def _tell(words: SideTrack, speech: PreparedSpeech) -> None:
    await words.heard()
    await words.play(speech.audio())


async def _hear(track: rtc.RemoteAudioTrack, ear: stt.RecognizeStream) -> None:
    stream = rtc.AudioStream(track, sample_rate=_LISTEN_RATE, num_channels=1, frame_size_ms=20)
    try:
        async for event in stream:
            ear.push_frame(event.frame)
    finally:
        await stream.aclose()


def _told_by_the_gateway() -> None:
    """Do nothing: the gateway writes this step on the timeline."""
