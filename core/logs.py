"""One way to log, for every process: static messages, facts in structured fields.

    log.info("call answered", extra={"call_id": call.id, "to": call.to_number})

With LOG_REDACT, fields in ``PHONE_FIELDS`` and ``SPEECH_FIELDS`` are redacted, and so are numbers
within fields in ``NAME_FIELDS``. Fields in ``SECRET_FIELDS`` are always redacted, at any depth.
Never put a secret into a message.
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
# Fields (livekit-agents' too) whose values hold phone numbers: `in_<called>_…`, `sip_<caller>`.
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
# A phone number within a name. The parts around it stay, so that names remain distinguishable.
_NUMBER = re.compile(r"(?<![0-9A-Za-z])\+?[0-9]{4,20}(?![0-9A-Za-z])")
# livekit-agents prefixes fields with speech and tool arguments with this.
_SPEECH_PREFIX = "lk.pii."


def is_speech(name: str) -> bool:
    """Return True if the field holds words that were said, or what was made of them."""
    return name.lower() in SPEECH_FIELDS or name.lower().startswith(_SPEECH_PREFIX)


def configure(settings: Settings, service: Literal["gateway", "worker", "bridge", "dev"]) -> None:
    """Send the root logger to stderr. Call once, in ``__main__``."""
    console = settings.log_format == "console" or (
        settings.log_format == "auto" and sys.stderr.isatty()
    )
    renderer: Processor = (
        # The default traceback formatter would print every local variable, passwords included.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
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
    # Below WARNING these log headers, bodies, addresses or SQL parameters.
    for name in ("aiohttp.access", "sqlalchemy.engine", "aiosqlite", "asyncio", "mcp", "httpx2"):
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def _service(name: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
        fields["service"] = name
        return fields

    return add


class _Redactor:
    """Redacts private fields; a phone number keeps its last three digits."""

    def __init__(self, *, phone_and_speech: bool) -> None:
        self._phone_and_speech = phone_and_speech

    def __call__(self, _logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
        fields.pop("message", None)  # records of job processes come with their formatted text
        for name, value in fields.items():
            fields[name] = self._field(name, value)
        return fields

    def _field(self, name: str, value: Any) -> Any:
        key = name.lower()
        if key in SECRET_FIELDS:
            return "[redacted]"
        if self._phone_and_speech and value is not None:
            if is_speech(key):
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
