"""Maps livekit-api's errors to AppErrors, for all but dials, which have a verdict (sip.dial)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import aiohttp
from livekit.api import ServerError, SipCallError

from core.errors import AppError, Detail, NotFound, ServerFault, Unavailable

log = logging.getLogger(__name__)

# Nothing was done, and a retry may succeed a moment later.
_TRY_LATER = frozenset({"unavailable", "resource_exhausted"})


@contextlib.contextmanager
def livekit_errors(
    missing: NotFound | None = None, *, failed: str = "LIVEKIT_ERROR"
) -> Iterator[None]:
    """Turn livekit-api's errors into AppErrors: ``with livekit_errors(missing): await lkapi.…``.

    ``missing`` is raised for LiveKit's not_found; ``failed`` is the code of other refusals.
    LiveKit's own text is not passed on.
    """
    try:
        yield
    except ServerError as error:
        if error.code == "not_found" and missing is not None:
            raise missing from None
        log.warning("LiveKit refused", extra={"problem": error.code, "status": error.status})
        raise _refused(error, failed) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        log.warning("LiveKit not reached", extra={"problem": type(error).__name__})
        raise Unavailable("LiveKit cannot be reached", code="LIVEKIT_UNAVAILABLE") from None


def _refused(error: ServerError, failed: str) -> AppError:
    sip_status = error.sip_status_code if isinstance(error, SipCallError) else None
    if sip_status is not None:
        detail = Detail("sip_status_code", str(sip_status), "sip_status")
        return ServerFault("The other phone refused", code=failed, details=[detail])
    if error.code in _TRY_LATER:
        return Unavailable("LiveKit is overloaded", code="LIVEKIT_UNAVAILABLE")
    return ServerFault("LiveKit refused the request", code=failed)
