"""``POST /internal/calls/{id}/transfer``: a worker hands its caller over."""

from __future__ import annotations

from aiohttp import web

from core.transfers import TransferOrder, TransferResult
from gateway.api.worker import call_of_token
from gateway.http.body import parse_body
from gateway.http.route import Route
from gateway.keys import TRANSFERS


async def create(request: web.Request) -> web.StreamResponse:
    """Answers when the outcome is known; the same request again waits for the same transfer."""
    call_id = call_of_token(request)
    order = await parse_body(request, TransferOrder)
    transfers = request.app[TRANSFERS]
    assert transfers is not None  # nobody is a worker without LiveKit keys
    return web.json_response((await transfers.carry_out(call_id, order)).wire())


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/internal/calls/{id}/transfer",
        handler=create,
        summary="Hand the caller over to the agent's transfer number",
        tag="Internal",
        body=TransferOrder,
        answer=TransferResult,
        errors=(
            (404, "CALL_NOT_FOUND"),
            (409, "CALL_NOT_ANSWERED"),
            (409, "NO_TRANSFER_NUMBER"),
            (410, "CALL_ENDED"),
            (503, "LIVEKIT_UNAVAILABLE"),
        ),
        internal=True,
    ),
)
