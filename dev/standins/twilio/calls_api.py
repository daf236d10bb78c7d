"""The REST API of calls: create, list, show, change.

https://www.twilio.com/docs/voice/api/call-resource
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from multidict import MultiDictProxy

from dev.standins.twilio.call import Call, Document, End, Fetch
from dev.standins.twilio.errors import Refused, missing
from dev.standins.twilio.exchange import Placed
from dev.standins.twilio.outbox import EVENTS, Progress
from dev.standins.twilio.pages import old_page
from dev.standins.twilio.services import Services
from dev.standins.twilio.twiml import Method

Form = MultiDictProxy[Any]
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_WRONG_STATE = 21220
_LONGEST_TWIML = 4000
_DETECTIONS = (None, "Enable", "DetectMessageEnd")


class CallsApi:
    """``begin`` makes a call of account, From and To; ``place`` starts it."""

    def __init__(
        self,
        services: Services,
        begin: Callable[[str, str, str], Call],
        place: Callable[[Call, Placed], None],
    ) -> None:
        self._services, self._begin, self._place = services, begin, place

    def routes(self, prefix: str) -> list[web.RouteDef]:
        one = prefix + "/Calls/{sid}.json"
        return [
            web.get(prefix + "/Calls.json", self._list),
            web.post(prefix + "/Calls.json", self._create),
            web.get(one, self._show),
            web.post(one, self._change),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        form, account = await request.post(), request.match_info["account"]
        to, from_ = _number(form, "To", 21201, 21211), _number(form, "From", 21213, 21212)
        if not self._services.owns(account, from_):
            raise Refused(400, 21210, "The source phone number is not verified for your account")
        placed, events = _placed(form), _events(form)
        callback = _url(form, "StatusCallback", 21609)
        method = _method(form, "StatusCallbackMethod")
        fallback = _url(form, "FallbackUrl", 21205)
        fallback_method = _method(form, "FallbackMethod")
        # Everything was checked: from here on the call exists.
        call = self._begin(account, from_, to)
        call.progress = Progress(call.outbox, callback, method, events)
        if fallback is not None:
            call.fallback = Fetch(fallback, fallback_method)
        self._place(call, placed)
        return web.json_response(call.resource(), status=201)

    async def _list(self, request: web.Request) -> web.Response:
        account, wanted = request.match_info["account"], request.query
        rows = [
            call.resource()
            for call in reversed(self._services.calls.values())  # the newest first
            if call.account_sid == account
            and wanted.get("To") in (None, call.to)
            and wanted.get("From") in (None, call.from_)
        ]
        return old_page(request, "calls", rows)

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._call(request).resource())

    async def _change(self, request: web.Request) -> web.Response:
        call, form = self._call(request), await request.post()
        status = form.get("Status")
        if status is not None:
            _end(call, str(status))
        else:
            source = _source(form)
            if call.status != "in-progress":
                raise Refused(400, _WRONG_STATE, "Call is not in-progress. Cannot redirect.")
            call.order(source)
        return web.json_response(call.resource())

    def _call(self, request: web.Request) -> Call:
        call = self._services.calls.get(request.match_info["sid"])
        if call is None or call.account_sid != request.match_info["account"]:
            raise missing()
        return call


def _end(call: Call, status: str) -> None:
    if status not in ("completed", "canceled"):
        raise Refused(400, 20001, "Status must be completed or canceled")
    if call.over or (status == "canceled" and call.answered):
        raise Refused(400, _WRONG_STATE, f"Call is {call.status}")
    call.order(End("completed" if call.answered else "canceled"))


def _number(form: Form, name: str, absent: int, wrong: int) -> str:
    value = str(form.get(name, ""))
    if not value:
        raise Refused(400, absent, f"No '{name}' number is specified")
    if not _E164.fullmatch(value):
        raise Refused(400, wrong, f"'{name}' {value} is not a valid phone number")
    return value


def _url(form: Form, name: str, wrong: int) -> str | None:
    value = form.get(name)
    if value is None:
        return None
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(400, wrong, f"{name} is not a valid URL")
    return str(value)


def _method(form: Form, name: str) -> Method:
    match form.get(name, "POST"):
        case "GET":
            return "GET"
        case "POST":
            return "POST"
    raise Refused(400, 21403, f"{name} must be GET or POST")


def _source(form: Form) -> Fetch | Document:
    url, text = _url(form, "Url", 21205), form.get("Twiml")
    if (url is None) == (text is None):
        raise Refused(400, 21205, "Url or Twiml is required, and not both")
    if url is not None:
        return Fetch(url, _method(form, "Method"))
    if len(str(text)) > _LONGEST_TWIML:
        raise Refused(400, 21205, "Twiml is longer than 4000 characters")
    return Document(str(text))


def _events(form: Form) -> tuple[str, ...]:
    events = tuple(map(str, form.getall("StatusCallbackEvent", ["completed"])))
    if not set(events) <= set(EVENTS):
        raise Refused(400, 21626, "Invalid StatusCallbackEvent")
    return events


def _placed(form: Form) -> Placed:
    timeout = str(form.get("Timeout", "60"))
    if not re.fullmatch("[0-9]{1,3}", timeout) or not 1 <= int(timeout) <= 600:
        raise Refused(400, 21208, "Invalid Timeout")
    detection = form.get("MachineDetection")
    if detection not in _DETECTIONS:
        raise Refused(400, 20001, "Invalid MachineDetection")
    return Placed(
        _source(form),
        int(timeout),
        None if detection is None else str(detection),
        str(form.get("AsyncAmd", "false")).lower() == "true",
        _url(form, "AsyncAmdStatusCallback", 21609),
    )
