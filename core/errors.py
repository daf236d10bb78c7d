"""Every error response of the system, as one class tree.

    AppError
    ├── BadRequest 400          malformed: INVALID_JSON, INVALID_REQUEST, INVALID_PHONE_NUMBER, …
    ├── Unauthenticated 401     MISSING_AUTH_HEADER, INVALID_AUTH_HEADER, UNAUTHORIZED
    ├── Forbidden 403           DESTINATION_NOT_ALLOWED, …
    ├── NotFound 404            also for another tenant's resources
    ├── MethodNotAllowed 405
    ├── RequestTimeout 408
    ├── Conflict 409            PARTICIPANT_EXISTS, IDEMPOTENCY_KEY_REUSED, …
    ├── Gone 410                CALL_ENDED, for workers
    ├── PayloadTooLarge 413
    ├── UnsupportedMediaType 415
    ├── RangeNotSatisfiable 416 a range outside a recording
    ├── Unprocessable 422       VALIDATION_ERROR (the /v1 and /api/v1 form of INVALID_REQUEST)
    ├── TooEarly 425            always with Retry-After: CALL_NOT_READY
    ├── TooManyRequests 429     always with Retry-After
    ├── HeadersTooLarge 431
    ├── ServerFault 500         LIVEKIT_NOT_CONFIGURED, CALL_FAILED, OUTCOME_UNKNOWN, …
    └── Unavailable 503         always with Retry-After

Messages are written here and shown to clients. They never contain an upstream's text,
a secret, or the name of another tenant's resource. The gateway renders them in one
place; their shape depends on the path only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Detail:
    """One invalid field: ``field`` is a dotted path into the body, query or path."""

    field: str
    message: str
    type: str


class AppError(Exception):
    """An error response. ``code`` is stable; ``message`` is for people."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: Sequence[Detail] = (),
        headers: dict[str, str] | None = None,
        call_id: str | None = None,
    ) -> None:
        """``call_id`` names the call that the failed request left behind, if there is one."""
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.details = tuple(details)
        self.headers = headers or {}
        self.call_id = call_id


class BadRequest(AppError):
    status = 400
    default_code = "INVALID_REQUEST"


class Unauthenticated(AppError):
    status = 401
    default_code = "UNAUTHORIZED"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(AppError):
    status = 403
    default_code = "FORBIDDEN"


class NotFound(AppError):
    status = 404
    default_code = "NOT_FOUND"


class MethodNotAllowed(AppError):
    status = 405
    default_code = "METHOD_NOT_ALLOWED"


class RequestTimeout(AppError):
    """The body did not arrive in time."""

    status = 408
    default_code = "REQUEST_TIMEOUT"


class Conflict(AppError):
    status = 409
    default_code = "CONFLICT"


class Gone(AppError):
    """The call has ended or was refused; nothing is left to do for it."""

    status = 410
    default_code = "CALL_ENDED"


class PayloadTooLarge(AppError):
    status = 413
    default_code = "PAYLOAD_TOO_LARGE"


class UnsupportedMediaType(AppError):
    status = 415
    default_code = "UNSUPPORTED_MEDIA_TYPE"


class RangeNotSatisfiable(AppError):
    status = 416
    default_code = "RANGE_NOT_SATISFIABLE"


class Unprocessable(AppError):
    status = 422
    default_code = "VALIDATION_ERROR"


class HeadersTooLarge(AppError):
    status = 431
    default_code = "HEADERS_TOO_LARGE"


class _TryLater(AppError):
    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code, headers={"Retry-After": str(retry_after_s)})


class TooEarly(_TryLater):
    status = 425
    default_code = "TOO_EARLY"


class TooManyRequests(_TryLater):
    status = 429
    default_code = "RATE_LIMITED"


class ServerFault(AppError):
    status = 500
    default_code = "INTERNAL_ERROR"


class Unavailable(_TryLater):
    status = 503
    default_code = "UNAVAILABLE"
