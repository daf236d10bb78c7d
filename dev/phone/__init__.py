"""A SIP phone in code: it answers, rejects, speaks, listens and records."""

from dev.phone.audio import Heard, Span
from dev.phone.behaviour import Answer, Behaviour, Reject, RingOut
from dev.phone.call import PhoneCall, Transfer
from dev.phone.endings import CallEnded, CallRefused, Ended
from dev.phone.phone import Phone

__all__ = [
    "Answer",
    "Behaviour",
    "CallEnded",
    "CallRefused",
    "Ended",
    "Heard",
    "Phone",
    "PhoneCall",
    "Reject",
    "RingOut",
    "Span",
    "Transfer",
]
