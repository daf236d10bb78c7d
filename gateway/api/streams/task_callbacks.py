"""Twilio's requests about the calls of tasks, signed by the account that placed the call.

The query names the attempt's call (``?call=call_…``): Twilio may report on a call whose id we do
not know yet.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gateway.api import faults
from gateway.calls.streams import twiml
from gateway.calls.tasks.progress import News
from gateway.calls.tasks.service import Attempt, not_signed
from gateway.http.body import parse_query, read_form
from gateway.http.route import Route
from gateway.keys import SETTINGS, call_services
from gateway.numbers.signatures import HEADER, is_signed

_LONGEST_NUMBER = 9


class AttemptKey(BaseModel):
    model_config = ConfigDict(extra="ignore")

    call: str = Field("", max_length=64, description="The attempt's call.")


async def connect(request: web.Request) -> web.StreamResponse:
    """The callee has answered: connect the call to its agent."""
    attempt, form = await _signed(request)
    services = call_services(request.app)
    call = await services.tasks.connect(attempt, form["CallSid"])
    if call is None:
        return _twiml(twiml.hang_up())
    services.stream_sessions.follow(call.id)
    return _twiml(await services.twilio_sessions.go_on(call, None, form))


async def status(request: web.Request) -> web.StreamResponse:
    """The call has a new status, or Twilio knows who has answered."""
    attempt, form = await _signed(request)
    sequence = _number(form, "SequenceNumber")
    news = News(
        form["CallSid"],
        # The result of the machine detection repeats a status that may be old by now.
        "" if sequence is None else form.get("CallStatus", ""),
        sip_status_code=_sip_status(form),
        answered_by=form.get("AnsweredBy") or None,
        answered_by_after_ms=_number(form, "MachineDetectionDuration"),
    )
    await call_services(request.app).tasks.report(attempt, news, sequence)
    return web.Response(status=204)


async def _signed(request: web.Request) -> tuple[Attempt, Mapping[str, str]]:
    """Return the request's attempt and form. Raises Forbidden."""
    form = await read_form(request)
    tasks = call_services(request.app).tasks
    call_id = parse_query(request, AttemptKey).call
    attempt = await tasks.attempt(request.match_info["taskId"], call_id)
    url = f"{request.app[SETTINGS].public_base_url}{request.raw_path}"
    if not is_signed(attempt.account, url, request.headers.get(HEADER), form):
        raise not_signed()
    if not form.get("CallSid") or form.get("AccountSid") != attempt.account.account_sid:
        raise not_signed()
    return attempt, form


def _number(form: Mapping[str, str], name: str) -> int | None:
    text = form.get(name, "")
    usable = text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER
    return int(text) if usable else None


def _sip_status(form: Mapping[str, str]) -> int | None:
    code = _number(form, "SipResponseCode")
    return code if code is not None and 400 <= code <= 699 else None


def _twiml(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/xml")


_PATH = "/v1/sessions/twilio/task/{taskId}"

ROUTES: tuple[Route, ...] = (
    Route(
        f"POST {_PATH}/connect",
        connect,
        "Twilio: the callee has answered",
        query=AttemptKey,
        content="text/xml",
        errors=faults.CALLBACK,
        public=True,
    ),
    Route(
        f"POST {_PATH}/status",
        status,
        "Twilio: the status of a task's call",
        query=AttemptKey,
        status=204,
        errors=faults.CALLBACK,
        public=True,
    ),
)
