"""Whose keys reach a phone: keys go where the voice goes.

A key that is pressed is told to everybody in the room (``SipDTMF``), and LiveKit's server has
no say in who gets it. Of the audio it has: subscriptions decide who may hear whom
(worker.room.separation). So a phone gets the keys of another participant only while it is
subscribed to that participant's audio. The end of a subscription is told to nobody, so the one
who is kept apart, a transfer's human, has none of the others' keys and gives none to them until
its agent says that it has taken the call. livekit-sip plays whatever key it is told of.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

from livekit import rtc

from core.legs import TAKEN, Leg

CODES: Final = {digit: code for code, digit in enumerate("0123456789*#ABCD")}
"""The event code of each key (RFC 4733 §3.2)."""


def reach(
    sender: rtc.RemoteParticipant | None, heard: Container[str], own: Mapping[str, str]
) -> bool:
    """Whether keys of ``sender`` are for a phone that is subscribed to the tracks ``heard``.

    ``own``: the attributes of that phone.

    No ``sender``: somebody who is not in the room any more. An agent addresses its keys itself
    (core.rtc_sdk.publish_dtmf), and may send them before its voice is subscribed to. A program
    without audio of its own cannot be kept apart from anybody; a phone always has audio.
    """
    if sender is None:
        return False
    if sender.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
        return True
    if _apart(sender.attributes) or _apart(own):
        return False
    if not sender.track_publications:
        return sender.kind != rtc.ParticipantKind.PARTICIPANT_KIND_SIP
    return any(sid in heard for sid in sender.track_publications)


def _apart(attributes: Mapping[str, str]) -> bool:
    """Whether it is a transfer's human that has not taken the call."""
    leg = Leg.read(attributes)
    return leg is not None and leg.role == "human" and not attributes.get(TAKEN)
