"""The REST API of phone numbers: search, buy, list, show, change, release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from multidict import MultiDictProxy

from dev.standins.twilio.errors import Refused, missing
from dev.standins.twilio.pages import ACCOUNT, Row, old_page

# Of the form, and of the number that is shown.
_URLS = {
    "VoiceUrl": "voice_url",
    "VoiceFallbackUrl": "voice_fallback_url",
    "StatusCallback": "status_callback",
}
_METHODS = {
    "VoiceMethod": "voice_method",
    "VoiceFallbackMethod": "voice_fallback_method",
    "StatusCallbackMethod": "status_callback_method",
}


class NumbersApi:
    """Works on the server's numbers and inventory; ``give`` adds a number to an account."""

    def __init__(
        self, numbers: dict[str, Row], inventory: list[Row], give: Callable[..., Row]
    ) -> None:
        self._numbers, self._inventory, self._give = numbers, inventory, give

    def routes(self, prefix: str) -> list[web.RouteDef]:
        numbers, number = (
            f"{prefix}/IncomingPhoneNumbers.json",
            prefix + "/IncomingPhoneNumbers/{sid}.json",
        )
        return [
            web.get(numbers, self._list),
            web.post(numbers, self._buy),
            web.get(number, self._show),
            web.post(number, self._change),
            web.delete(number, self._release),
            web.get(prefix + "/AvailablePhoneNumbers/{country}/Local.json", self._available),
        ]

    def _number(self, request: web.Request) -> Row:
        row = self._numbers.get(request.match_info["sid"])
        if row is None or row["account_sid"] != request[ACCOUNT]:
            raise missing()
        return row

    async def _list(self, request: web.Request) -> web.Response:
        wanted = request.query.get("PhoneNumber", "").strip("+")
        rows = [
            row
            for row in self._numbers.values()
            if row["account_sid"] == request[ACCOUNT] and wanted in row["phone_number"]
        ]
        return old_page(request, "incoming_phone_numbers", rows)

    async def _buy(self, request: web.Request) -> web.Response:
        form = await request.post()
        offered = next(
            (r for r in self._inventory if r["phone_number"] == form["PhoneNumber"]), None
        )
        if offered is None:
            raise Refused(400, 21422, "Phone number is not available")
        voice = _voice(form)
        self._inventory.remove(offered)
        name = str(form.get("FriendlyName", offered["phone_number"]))
        row = self._give(request[ACCOUNT], offered["phone_number"], friendly_name=name, **voice)
        return web.json_response(row, status=201)

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._number(request))

    async def _change(self, request: web.Request) -> web.Response:
        row, form = self._number(request), await request.post()
        row.update(_voice(form))
        if "VoiceApplicationSid" in form:
            # Twilio's documentation: the application and the trunk exclude each other.
            row.update(voice_application_sid=form["VoiceApplicationSid"], trunk_sid=None)
        return web.json_response(row)

    async def _release(self, request: web.Request) -> web.Response:
        del self._numbers[self._number(request)["sid"]]
        return web.Response(status=204)

    async def _available(self, request: web.Request) -> web.Response:
        country = request.match_info["country"]
        offered = [row for row in self._inventory if row["iso_country"] == country]
        if not offered:
            raise missing()
        area, region = request.query.get("AreaCode"), request.query.get("InRegion")
        rows = [
            row
            for row in offered
            if (area is None or row["phone_number"].startswith(f"+1{area}"))
            and (region is None or row["region"] == region)
        ]
        return old_page(request, "available_phone_numbers", rows)


def _voice(form: MultiDictProxy[Any]) -> Row:
    """Return the columns of the form's URLs and methods for calls."""
    columns = {}
    for name, column in _URLS.items():
        url = str(form.get(name, ""))
        if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise Refused(400, 21402, f"{name} is not a valid URL")
        if name in form:
            columns[column] = url
    for name, column in _METHODS.items():
        if name in form:
            if form[name] not in ("GET", "POST"):
                raise Refused(400, 21403, f"{name} must be GET or POST")
            columns[column] = str(form[name])
    return columns
