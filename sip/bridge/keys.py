"""Whose keys reach a phone: keys go where the voice goes.

A key that is pressed is told to everybody in the room (``SipDTMF``), and LiveKit's server has
no say in who gets it. Of the audio it has: subscriptions decide who may hear whom
(worker.separation). So a phone gets the keys of another phone only while it hears that phone:
the end of a subscription is told to nobody, but its frames stop. livekit-sip plays whatever key
it is told of.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Container
from dataclasses import dataclass, field

from livekit import rtc


@dataclass(frozen=True, slots=True)
class Key:
    """One to be played to the phone, if it still hears one of ``tracks`` (none: in any case)."""

    digit: str
    tracks: Collection[str] = ()
    told_at: float = field(default_factory=time.monotonic)


def proof(sender: rtc.RemoteParticipant | None) -> Collection[str]:
    """Whose frames show that a phone still hears ``sender``; empty where there may be none."""
    if sender is None or sender.kind != rtc.ParticipantKind.PARTICIPANT_KIND_SIP:
        return ()
    return tuple(sender.track_publications)


def reach(sender: rtc.RemoteParticipant | None, subscribed: Container[str]) -> bool:
    """Whether keys of ``sender`` are for a phone that is subscribed to these tracks.

    None: somebody who is not in the room any more. An agent addresses its keys itself
    (core.rtc_sdk.publish_dtmf), and may send them before its voice is subscribed to. A program
    without audio of its own cannot be kept apart from anybody; a phone always has audio, a
    browser that is muted has none.
    """
    if sender is None:
        return False
    if sender.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
        return True
    if not sender.track_publications:
        return sender.kind != rtc.ParticipantKind.PARTICIPANT_KIND_SIP
    return any(sid in subscribed for sid in sender.track_publications)
