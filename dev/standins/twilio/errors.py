"""Errors of the REST API, and alerts: the errors that Twilio's console would show."""

from __future__ import annotations

from dataclasses import dataclass

LOUD = frozenset({11243, 12100, 12200, 12300, 13214, 31922, 31923, 31924, 31941})
"""Mistakes of the answering side that no fault of the network explains: they fail a test."""


class Refused(Exception):
    """A REST request is refused with an HTTP status and Twilio's code."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Fault(Exception):
    """A call met an error: Twilio's code (https://www.twilio.com/docs/api/errors) and its cause."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@dataclass(frozen=True)
class Alert:
    """An error that a call met."""

    code: int
    message: str
    call_sid: str

    @property
    def loud(self) -> bool:
        return self.code in LOUD


def missing() -> Refused:
    return Refused(404, 20404, "The requested resource was not found")
