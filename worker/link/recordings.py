"""Tells the gateway what became of recordings, after their calls."""

from __future__ import annotations

from http import HTTPStatus

from core.models import CallEvent
from core.tokens import TokenIssuer
from recordings.upload import Later, Never
from worker.link.client import Gateway, Refused, Unavailable


class RecordingReport:
    """Posts events of any call: a recording may be stored long after its call's token expired.

    So no token is kept on the disk beside the audio.
    """

    def __init__(self, gateway: Gateway, tokens: TokenIssuer) -> None:
        self._gateway = gateway
        self._tokens = tokens
        # The gateway answers a new token with "not yet" if it does not know the call. So a token is
        # used until there is an answer.
        self._waiting: dict[str, str] = {}

    async def __call__(self, call_id: str, event: CallEvent, /) -> None:
        token = self._waiting.get(call_id) or self._tokens.for_call(call_id)
        self._waiting[call_id] = token
        try:
            await self._gateway.post_events(call_id, token, [event])
        except Unavailable as error:
            raise Later(f"gateway unavailable: {error}") from None
        except Refused as error:
            del self._waiting[call_id]
            if error.status == HTTPStatus.UNAUTHORIZED:  # expired, or another LIVEKIT_API_SECRET
                raise Later("the gateway does not take our token") from None
            raise Never(f"the gateway refused the event: {error}") from None
        del self._waiting[call_id]
