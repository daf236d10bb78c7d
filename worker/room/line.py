"""The room line: the far end is a participant in a LiveKit room, a phone's leg or a browser."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from livekit import rtc
from livekit.agents import Agent, AgentSession, BackgroundAudioPlayer, JobContext
from livekit.agents.voice import room_io

from core.audio import Pcm
from core.jobs import CallBrief
from core.recordings.command import COMMAND_TOPIC
from core.rtc_sdk import publish_dtmf
from core.settings import Settings
from core.sound.reports import SoundReport
from core.tasks.within import within
from core.tokens import TokenIssuer
from core.transfers import TransferResult, human_identity
from worker.handover.aside import Aside
from worker.line import KEYS, LineError, Listener, Rates
from worker.privacy.commands import Commands
from worker.room import hang_up
from worker.room.consultation import RoomConsultation
from worker.room.far_end import FarEnd
from worker.room.hearing import hear
from worker.room.media_delay import MediaDelay
from worker.room.motion import Motion
from worker.room.reasons import agent_disconnected
from worker.room.sound_reports import SoundReports

log = logging.getLogger(__name__)

_RATES = Rates(speech=16_000, voice=24_000)

_RECONNECT_WITHIN_S = 20.0
_USUAL_DELAY_MS = 70.0
# What Opus, the SIP service's packets and the queues between them hold (measured).
_HIDDEN_DELAY_MS = 15.0, 65.0
_DIALLED_WITHIN_S = 12.0  # a dial's participant joins within 10 s (sip.dial)
_DISMISS_WITHIN_S = 5.0
_LEG_DRAIN_S = 0.4  # the phone's leg still has this much to play when the last word is sent


class RoomLine:
    """A worker.line.Line. ``inbound``: the room was made for a caller."""

    def __init__(
        self,
        ctx: JobContext,
        settings: Settings,
        *,
        inbound: bool,
        reconnect_within_s: float = _RECONNECT_WITHIN_S,
    ) -> None:
        self._ctx = ctx
        self._room = ctx.room
        self._settings = settings
        self._inbound = inbound
        self._reconnect_within_s = reconnect_within_s
        self._identity: str | None = None
        self._listener: Listener | None = None
        self._far_end: FarEnd | None = None
        self._commands: Commands | None = None
        self._sound: SoundReports | None = None
        self._delay: MediaDelay | None = None
        self._motion: Motion | None = None
        self._giving_up: asyncio.TimerHandle | None = None

    @property
    def rates(self) -> Rates:
        return _RATES

    # Connecting

    async def connect(self, listener: Listener) -> None:
        self._listener = listener
        self._room.on("disconnected", self._disconnected)
        self._room.on("reconnecting", self._reconnecting)
        self._room.on("reconnected", self._reconnected)
        self._room.on("data_received", self._data_received)
        # Subscribe to all tracks: livekit-agents' audio-only mode is deaf after a server restart.
        await self._ctx.connect()

    def taken_over(self) -> None:
        if self._listener is not None:
            self._listener.lost("agent_replaced", "another agent has the call")

    def meet(self, brief: CallBrief) -> None:
        self._identity = brief.participant_identity
        secret = self._settings.livekit_api_secret
        if secret is not None:
            self._commands = Commands(brief.call_id, TokenIssuer(secret.get_secret_value()))
        self._inbound = brief.direction == "inbound"

    async def start(self, session: AgentSession[None], agent: Agent) -> None:
        """Publish the agent's track; a SIP service answers a caller once it has that track."""
        identity, listener = self._identity, self._listener
        assert identity is not None and listener is not None, "not met, or not connected"
        self._delay = MediaDelay(self._room, identity)
        far_end = self._far_end = FarEnd(
            self._room,
            identity,
            inbound=self._inbound,
            on_ringing=listener.ringing,
            on_answered=self._answered,
            on_digit=listener.key,
            on_left=listener.left,
        )
        far_end.look()
        await session.start(
            agent,
            room=self._room,
            room_options=_options(identity),
            # No participant may control the agent, and nothing is sent to LiveKit's cloud.
            session_host=False,
            record=False,
        )
        self._motion = Motion(self._room, identity, session.output.audio)

    async def joined(self) -> None:
        assert self._far_end is not None, "not started"
        await self._far_end.joined.wait()

    async def answered(self) -> None:
        assert self._far_end is not None, "not started"
        await self._far_end.answered.wait()

    def still(self) -> str | None:
        """Return which audio (``input``, ``output``) should have moved since the last call, and did
        not; see worker.room.motion."""
        return None if self._motion is None else self._motion.still()

    # Connected

    @property
    def present(self) -> bool:
        return self._whom() is not None

    @property
    def delay_ms(self) -> float | None:
        return None if self._delay is None else self._delay.ms

    @property
    def usual_delay_ms(self) -> float:
        return _USUAL_DELAY_MS

    @property
    def hidden_delay_ms(self) -> tuple[float, float]:
        return _HIDDEN_DELAY_MS

    def hear(self, rate: int, piece_ms: int = 20) -> AsyncGenerator[Pcm]:
        return hear(self._room, self._identity or "", rate, piece_ms)

    def report_sound(self, to: Callable[[SoundReport], None]) -> None:
        assert self._identity is not None, "not met"
        if self._sound is None:
            self._sound = SoundReports(self._room, self._identity, to)

    async def accompany(self, player: BackgroundAudioPlayer) -> None:
        """Play it on a track of its own."""
        try:
            await player.start(room=self._room)
        except rtc.participant.PublishTrackError as error:
            raise LineError(str(error)) from error

    async def press(self, key: str) -> None:
        assert self._identity is not None, "not met"
        try:
            await publish_dtmf(self._room, [self._identity], code=KEYS.index(key), digit=key)
        except rtc.participant.PublishDTMFError as error:
            log.warning("a key was not played", extra={"error": str(error)})
            raise LineError("the keys could not be played") from error

    async def refer(self, ask: Callable[[], Awaitable[TransferResult]]) -> TransferResult:
        return await ask()

    def consult(
        self,
        brief: CallBrief,
        transfer_id: str,
        *,
        recorded: bool,
        on_connected: Callable[[], None],
        on_left: Callable[[str], None],
    ) -> RoomConsultation:
        return RoomConsultation(
            brief,
            human_identity(transfer_id),
            recorded=recorded,
            room=self._room,
            livekit=self._ctx.api,
            aside=Aside(brief.agent.config, self._settings, _RATES),
            on_connected=on_connected,
            on_left=on_left,
        )

    async def dismiss(self, transfer_id: str) -> None:
        """The gateway goes on dialling them, or has just begun to."""
        identity = human_identity(transfer_id)
        here = asyncio.Event()

        def look(*_: object) -> None:
            if identity in self._room.remote_participants:
                here.set()

        self._room.on("participant_connected", look)
        look()
        try:
            if await within(_DIALLED_WITHIN_S, here.wait()):
                await hang_up.send_away(
                    self._room, self._ctx.api, identity, told=False, within_s=_DISMISS_WITHIN_S
                )
        finally:
            self._room.off("participant_connected", look)

    # Leaving

    async def drain(self) -> None:
        await asyncio.sleep(_LEG_DRAIN_S)

    async def hang_up(self, *, told: bool) -> None:
        """Hang up on the far end only: other participants may be in the room."""
        if (identity := self._whom()) is not None:
            await hang_up.send_away(self._room, self._ctx.api, identity, told=told)

    async def fall_silent(self) -> None:
        if self._room.isconnected():
            await hang_up.fall_silent(self._room)

    async def leave(self) -> None:
        self._stop_giving_up()
        if self._motion is not None:
            await self._motion.aclose()
        if self._delay is not None:
            await self._delay.aclose()
        if self._sound is not None:
            await self._sound.aclose()
        if self._far_end is not None:
            self._far_end.close()
        await hang_up.leave(self._room)

    def _whom(self) -> str | None:
        if self._far_end is not None:
            return self._far_end.identity if self._far_end.present else None
        # Before the session starts: the brief's participant, or without a brief the only phone.
        return self._identity or _only_phone(self._room)

    # The room's own events

    def _answered(self) -> None:
        assert self._listener is not None and self._delay is not None
        self._delay.start()
        self._listener.answered()

    def _data_received(self, packet: rtc.DataPacket) -> None:
        # A packet of the server's API has no participant.
        if packet.topic != COMMAND_TOPIC or packet.participant is not None:
            return
        command = self._commands.read(packet.data) if self._commands is not None else None
        if command is not None and self._listener is not None:
            self._listener.commanded(command)

    def _disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        answered = self._far_end is not None and self._far_end.answered.is_set()
        cause = agent_disconnected(reason, answered=answered, inbound=self._inbound)
        assert self._listener is not None
        self._listener.lost(cause, rtc.DisconnectReason.Name(reason))

    def _reconnecting(self) -> None:
        log.warning("connection to LiveKit lost")
        if self._giving_up is None and self._listener is not None:
            self._giving_up = asyncio.get_running_loop().call_later(
                self._reconnect_within_s, self._listener.lost, "media_lost", ""
            )

    def _reconnected(self) -> None:
        log.info("connection to LiveKit restored")
        self._stop_giving_up()
        if self._far_end is not None:
            self._far_end.recheck()

    def _stop_giving_up(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


def _options(identity: str) -> room_io.RoomOptions:
    """Return options for audio with one participant. The call decides when to close the session."""
    return room_io.RoomOptions(
        participant_identity=identity,
        audio_input=room_io.AudioInputOptions(
            sample_rate=_RATES.speech,
            frame_size_ms=20,
            auto_gain_control=False,
            pre_connect_audio=False,
        ),
        audio_output=room_io.AudioOutputOptions(sample_rate=_RATES.voice),
        text_input=False,
        close_on_disconnect=False,
    )


def _only_phone(room: rtc.Room) -> str | None:
    """Return the identity of the phone in the room if there is exactly one."""
    phones = [
        participant.identity
        for participant in room.remote_participants.values()
        if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_SIP
    ]
    return phones[0] if len(phones) == 1 else None
