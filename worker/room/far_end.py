"""Watches the agent's far end in a room: it joins, rings, answers, presses keys and leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from livekit import rtc

from core.legs import LEAVING, LOST
from worker.endings import Cause
from worker.room.reasons import MAY_RETURN, far_end_left

log = logging.getLogger(__name__)

CALL_STATUS = "sip.callStatus"
_RETURN_WITHIN_S = 10.0


class FarEnd:
    """Watches one identity in a room. All callbacks run on the event loop.

    ``on_ringing``, ``on_answered`` and ``on_left`` are called at most once each. A participant that
    is not SIP has answered by joining. A SIP service answers a caller once it has subscribed to the
    agent's track. So a caller who hangs up after that was answered, even if ``sip.callStatus``
    reports the answer and the end at the same time.
    """

    def __init__(
        self,
        room: rtc.Room,
        identity: str,
        *,
        inbound: bool,
        on_ringing: Callable[[], None],
        on_answered: Callable[[], None],
        on_digit: Callable[[str], None],
        on_left: Callable[[Cause, str], None],
        return_within_s: float = _RETURN_WITHIN_S,
    ) -> None:
        self.identity = identity
        self._inbound = inbound
        self.joined = asyncio.Event()
        self.answered = asyncio.Event()
        self._room = room
        self._ringing = False
        self._heard_us = False
        self._over = False
        self._on_ringing = on_ringing
        self._on_answered = on_answered
        self._on_digit = on_digit
        self._on_left = on_left
        self._return_within_s = return_within_s
        self._returning: asyncio.TimerHandle | None = None
        room.on("participant_connected", self._connected)
        room.on("participant_attributes_changed", self._attributes_changed)
        room.on("participant_disconnected", self._disconnected)
        room.on("sip_dtmf_received", self._digit)
        room.on("local_track_subscribed", self._subscribed)

    def look(self) -> None:
        """Check whether it is in the room already. Call this once the room is connected."""
        present = self._room.remote_participants.get(self.identity)
        if present is not None:
            self._connected(present)

    def recheck(self) -> None:
        """Check after a reconnect whether it has left meanwhile."""
        if self.answered.is_set() and not self.present and self._returning is None:
            self._wait_for_return("leg_lost", "gone after a reconnect")

    @property
    def present(self) -> bool:
        """True while it is in the room and not about to leave."""
        return not self._over and self.identity in self._room.remote_participants

    @property
    def _connected_ourselves(self) -> bool:
        return self._room.connection_state == rtc.ConnectionState.CONN_CONNECTED

    def close(self) -> None:
        """Stop watching."""
        if self._returning is not None:
            self._returning.cancel()
        self._room.off("participant_connected", self._connected)
        self._room.off("participant_attributes_changed", self._attributes_changed)
        self._room.off("participant_disconnected", self._disconnected)
        self._room.off("sip_dtmf_received", self._digit)
        self._room.off("local_track_subscribed", self._subscribed)

    def _connected(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity != self.identity:
            return
        if self._returning is not None:
            self._returning.cancel()
            self._returning = None
        self.joined.set()
        self._read_status(participant)

    def _attributes_changed(self, changed: dict[str, str], participant: rtc.Participant) -> None:
        if participant.identity == self.identity:
            self._read_status(participant)

    def _read_status(self, participant: rtc.Participant) -> None:
        status = participant.attributes.get(CALL_STATUS, "")
        if status == "ringing" and not self._ringing:
            self._ringing = True
            self._on_ringing()
        if (status == "active" or not _is_sip(participant)) and not self.answered.is_set():
            self.answered.set()
            self._on_answered()
        if not _is_sip(participant):
            return
        # The call is over and the leg about to leave. The bridge's legs wait a moment for the
        # worker to leave first.
        if participant.attributes.get(LEAVING):
            cause = self._why(rtc.DisconnectReason.PARTICIPANT_REMOVED, participant)
            self._left(cause, "asked to leave")
        elif self.answered.is_set():
            if status == "hangup":
                self._left("caller_hung_up", status)
            elif participant.attributes.get(LOST):
                self._left("leg_lost", "its SIP service died")

    def _subscribed(self, _track: rtc.LocalTrack) -> None:
        self._heard_us = True

    def _digit(self, dtmf: rtc.SipDTMF) -> None:
        if dtmf.participant is not None and dtmf.participant.identity == self.identity:
            self._on_digit(dtmf.digit)

    def _disconnected(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity != self.identity or not self._connected_ourselves:
            # While the worker has no connection, everybody seems to leave; see recheck.
            return
        reason = participant.disconnect_reason
        status = participant.attributes.get(CALL_STATUS, "")
        if self._inbound and self._heard_us and status == "hangup" and not self.answered.is_set():
            self.answered.set()
            self._on_answered()
        name = rtc.DisconnectReason.Name(reason or rtc.DisconnectReason.UNKNOWN_REASON)
        cause = self._why(reason, participant)
        if cause == "leg_lost" and (reason is None or reason in MAY_RETURN):
            self._wait_for_return(cause, name)
        else:
            self._left(cause, name)

    def _why(
        self, reason: rtc.DisconnectReason.ValueType | None, participant: rtc.Participant
    ) -> Cause:
        return far_end_left(
            reason,
            sip=_is_sip(participant),
            status=participant.attributes.get(CALL_STATUS, ""),
            answered=self.answered.is_set(),
            inbound=self._inbound,
        )

    def _left(self, cause: Cause, detail: str) -> None:
        if not self._over:
            self._over = True
            self._on_left(cause, detail)

    def _wait_for_return(self, cause: Cause, detail: str) -> None:
        log.warning("far end lost, waiting for its return", extra={"reason": detail})

        def give_up() -> None:
            self._returning = None
            if self._connected_ourselves:
                self._left(cause, detail)

        self._returning = asyncio.get_running_loop().call_later(self._return_within_s, give_up)


def _is_sip(participant: rtc.Participant) -> bool:
    return participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_SIP
