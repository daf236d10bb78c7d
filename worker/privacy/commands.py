"""Reads the API's commands to the agent of a room, which anybody in the room could try to send."""

from __future__ import annotations

import logging

from pydantic import ValidationError

from core.recordings.command import Command
from core.tokens import InvalidToken, TokenIssuer

log = logging.getLogger(__name__)


class Commands:
    """The commands of one call. Each is a token of the gateway for this call, and counts once."""

    def __init__(self, call_id: str, tokens: TokenIssuer) -> None:
        self._call_id = call_id
        self._tokens = tokens
        self._seen: set[str] = set()

    def read(self, data: bytes) -> Command | None:
        """Return the command; None: it is none, or was read before."""
        try:
            token = data.decode("ascii")
            command = Command.model_validate(self._tokens.command(token, self._call_id))
        except (InvalidToken, UnicodeDecodeError, ValidationError) as error:
            log.warning("not a command", extra={"problem": type(error).__name__})
            return None
        if command.id in self._seen:
            return None
        self._seen.add(command.id)
        return command
