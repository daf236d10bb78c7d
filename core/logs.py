"""One way to log, for every process: static messages, facts in structured fields.

    log.info("call answered", extra={"call_id": call.id, "to": call.to_number})

Fields in ``PHONE_FIELDS`` and ``SPEECH_FIELDS`` are redacted (LOG_REDACT), and so are the numbers
within those in ``NAME_FIELDS``; those in ``SECRET_FIELDS`` always, however deep they are; nothing
secret is ever put into a message.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from core.settings import Settings

PHONE_FIELDS = frozenset({"to", "from", "from_number", "to_number", "caller", "called"})
# What LiveKit names after phones: `in_<called>_…`, `sip_<caller>`. Ours and livekit-agents' own.
NAME_FIELDS = frozenset(
    {"room", "room_name", "identity", "participant", "participant_identity", "participant_name"}
)
SPEECH_FIELDS = frozenset({"transcript", "response", "text", "heard"})
SECRET_FIELDS = frozenset(
    {
        "password",
        "auth_password",
        "token",
        "secret",
        "api_key",
        "authorization",
        "access_token",
        "job",  # livekit-agents logs whole jobs; their metadata carries the call's token
    }
)
# A number in a name: as a rule between the others of its parts, which tell two of them apart.
_NUMBER = re.compile(r"(?<![0-9A-Za-z])\+?[0-9]{4,20}(?![0-9A-Za-z])")
# livekit-agents marks what people said, and what tools were told, with this prefix.
_SPEECH_PREFIX = "lk.pii."


def configure(settings: Settings, service: Literal["gateway", "worker", "bridge", "dev"]) -> None:
    """Send the root logger to stderr. Call once, in ``__main__``."""
    console = settings.log_format == "console" or (
        settings.log_format == "auto" and sys.stderr.isatty()
    )
    renderer: Processor = (
        # Its own choice of traceback would print every local variable, passwords included.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    shared: list[Processor] = [
        _service(service),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Redactor(phone_and_speech=settings.log_redact),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *([] if console else [structlog.processors.format_exc_info]),
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # These print headers, bodies, addresses or SQL parameters when asked to be chatty.
    for name in ("aiohttp.access", "sqlalchemy.engine", "aiosqlite", "asyncio", "mcp", "httpx2"):
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def _service(name: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
        fields["service"] = name
        return fields

    return add


class _Redactor:
    """Masks what must not be read in a log; a phone number keeps its last three digits."""

    def __init__(self, *, phone_and_speech: bool) -> None:
        self._phone_and_speech = phone_and_speech

    def __call__(self, _logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
        fields.pop("message", None)  # a job process's record, formatted once already
        for name, value in fields.items():
            fields[name] = self._field(name, value)
        return fields

    def _field(self, name: str, value: Any) -> Any:
        key = name.lower()
        if key in SECRET_FIELDS:
            return "[redacted]"
        if self._phone_and_speech and value is not None:
            if key in SPEECH_FIELDS or key.startswith(_SPEECH_PREFIX):
                return f"[{len(str(value))} characters]"
            if key in PHONE_FIELDS:
                return _masked(str(value))
            if key in NAME_FIELDS and isinstance(value, str):
                return _NUMBER.sub(lambda number: _masked(number[0]), value)
        return self._inside(value)

    def _inside(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._field(str(name), item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._inside(item) for item in value]
        return value


def _masked(number: str) -> str:
    return "…" + number[-3:] if len(number) > 3 else "…"
