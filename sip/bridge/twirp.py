"""Twirp as LiveKit speaks it: bodies in protobuf or JSON, errors always in JSON.

Sans-I/O. Protocol: https://twitchtv.github.io/twirp/docs/spec_v7.html
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from google.protobuf import any_pb2, json_format
from google.protobuf.message import DecodeError, Message
from livekit.protocol.sip import SIPStatus, SIPStatusCode

PROTOBUF: Final = "application/protobuf"
JSON: Final = "application/json"

M = TypeVar("M", bound=Message)

# Error code → HTTP status, from the Twirp specification's table.
HTTP_STATUS: Final[Mapping[str, int]] = {
    "canceled": 408,
    "unknown": 500,
    "invalid_argument": 400,
    "malformed": 400,
    "deadline_exceeded": 408,
    "not_found": 404,
    "bad_route": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "unauthenticated": 401,
    "resource_exhausted": 429,
    "failed_precondition": 412,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "dataloss": 500,
}

# The same codes as gRPC numbers them (google.rpc.Code).
_GRPC_CODES: Final[Mapping[str, int]] = {
    name: number
    for number, name in enumerate(
        "canceled unknown invalid_argument deadline_exceeded not_found already_exists "
        "permission_denied resource_exhausted failed_precondition aborted out_of_range "
        "unimplemented internal unavailable dataloss unauthenticated".split(),
        start=1,
    )
}

# SIP status of a refused INVITE or REFER → Twirp code, as livekit-server returns it.
# Others: 3xx, 4xx and 6xx are invalid arguments, 5xx failed preconditions.
_CODES_OF_SIP: Final[Mapping[str, tuple[int, ...]]] = {
    "not_found": (301, 302, 404, 410, 481, 604),
    "permission_denied": (401, 402, 403, 433, 470, 603, 607, 608),
    "unauthenticated": (407, 428, 436, 437, 438, 494),
    "deadline_exceeded": (408, 504),
    "failed_precondition": (409, 412, 482, 483),
    "out_of_range": (416,),
    "resource_exhausted": (440, 480, 486, 600),
    "aborted": (487, 491),
    "invalid_argument": (505, 513),
}
_TWIRP_OF_SIP: Final = {sip: code for code, sips in _CODES_OF_SIP.items() for sip in sips}


class TwirpError(Exception):
    """A response other than 200. ``code`` is one of ``HTTP_STATUS``."""

    def __init__(self, code: str, message: str, meta: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.meta = dict(meta or {})

    @property
    def http_status(self) -> int:
        return HTTP_STATUS[self.code]

    def body(self) -> bytes:
        answer: dict[str, object] = {"code": self.code, "msg": self.message}
        if self.meta:
            answer["meta"] = self.meta
        return json.dumps(answer).encode()


def sip_error(status: int, reason: str, *, what: str = "INVITE failed") -> TwirpError:
    """Return the error for a far end's refusal; livekit-api turns it into a SipCallError."""
    default = "failed_precondition" if 500 <= status < 600 else "invalid_argument"
    code = _TWIRP_OF_SIP.get(status, default)
    known = status in SIPStatusCode.values()
    text = reason or (SIPStatusCode.Name(status).removeprefix("SIP_STATUS_") if known else "")
    message = f"{what}: sip status: {status}: {text}"
    detail = any_pb2.Any()
    detail.Pack(SIPStatus(code=_any_status(status), status=reason))
    details = _rpc_status(_GRPC_CODES[code], message, detail)
    meta = {
        "sip_status_code": str(status),
        "sip_status": text,
        "error_details": b64encode(details).decode(),
    }
    return TwirpError(code, message, meta)


def _any_status(status: int) -> Any:
    """Let a status pass that LiveKit has no name for: protobuf enums are open."""
    return status


def _rpc_status(code: int, message: str, detail: any_pb2.Any) -> bytes:
    """Encode a google.rpc.Status (code = 1, message = 2, details = 3) for the metadata."""
    text, packed = message.encode(), detail.SerializeToString()
    return (
        b"\x08" + _varint(code)
        + b"\x12" + _varint(len(text)) + text
        + b"\x1a" + _varint(len(packed)) + packed
    )  # fmt: skip


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode(content_type: str, body: bytes, message: type[M]) -> M:
    """Parse a body. Raises TwirpError: ``bad_route`` for its content type, else ``malformed``."""
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == PROTOBUF:
            return message.FromString(body)
        if kind == JSON:
            fields = json.loads(body or b"{}")
            if isinstance(fields, dict):
                return json_format.ParseDict(fields, message(), ignore_unknown_fields=True)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError):
        raise TwirpError("malformed", "the request body could not be decoded") from None
    if kind == JSON:
        raise TwirpError("malformed", "the request body is not a JSON object")
    raise TwirpError("bad_route", f"unexpected Content-Type: {content_type!r}")


def encode(content_type: str, message: Message) -> tuple[bytes, str]:
    """Return the response in the request's content type, and that content type."""
    if content_type.partition(";")[0].strip().lower() == JSON:
        text = json_format.MessageToJson(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            indent=None,
        )
        return text.encode(), JSON
    return message.SerializeToString(), PROTOBUF
