"""Twilio's requests about the human that a caller is transferred to."""

from __future__ import annotations

from aiohttp import web
from pydantic import Field

from core.transfers import TRANSFER_ID, TransferOrder, TransferResult
from gateway.api import faults
from gateway.api.streams.twilio import Key, callback, xml
from gateway.calls.streams import twiml
from gateway.calls.streams.transfers import outcome_of
from gateway.http.body import parse_query
from gateway.http.route import Route
from gateway.keys import call_services


class TransferKey(Key):
    transfer: str = Field(pattern=TRANSFER_ID, description="The transfer's id, from the TwiML.")

    @property
    def order(self) -> TransferOrder:
        return TransferOrder(transfer_id=self.transfer)


async def action(request: web.Request) -> web.StreamResponse:
    """The human's leg has ended, or nobody answered: say how the caller's call goes on."""
    call, session, form = await callback(request)
    services = call_services(request.app)
    result = outcome_of(form.get("DialCallStatus", ""))
    gone = form.get("CallStatus") == "completed"
    order = parse_query(request, TransferKey).order
    await services.transfers.told(call.id, order, result, caller_gone=gone)
    if result.outcome == "transferred":
        return xml(twiml.hang_up())
    return xml(await services.twilio_sessions.go_on(call, session, form))


async def status(request: web.Request) -> web.StreamResponse:
    """The human has answered. Their end is the action's to tell."""
    call, _, form = await callback(request, of_child=True)
    if form.get("CallStatus") == "in-progress":
        order = parse_query(request, TransferKey).order
        result = TransferResult(outcome="transferred")
        await call_services(request.app).transfers.told(call.id, order, result)
    return web.Response(status=204)


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/sessions/twilio/{id}/transfer",
        action,
        "Twilio: a transfer has failed, or is over",
        query=TransferKey,
        content="text/xml",
        errors=faults.CALLBACK,
        public=True,
    ),
    Route(
        "POST /v1/sessions/twilio/{id}/transfer/status",
        status,
        "Twilio: the human has answered",
        query=TransferKey,
        status=204,
        errors=faults.CALLBACK,
        public=True,
    ),
)
