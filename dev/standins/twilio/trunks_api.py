"""The REST API of Elastic SIP Trunking: trunks, origination URLs, their numbers."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from dev.standins.twilio.call import new_sid
from dev.standins.twilio.errors import Refused, missing
from dev.standins.twilio.pages import ACCOUNT, Row, page

_TRUNKS = "/v1/Trunks"


class TrunksApi:
    """Works on the server's trunks, URLs and numbers; ``make`` adds a trunk to an account."""

    def __init__(
        self,
        trunks: dict[str, Row],
        urls: dict[str, Row],
        numbers: dict[str, Row],
        make: Callable[[str, str], Row],
    ) -> None:
        self._trunks, self._urls, self._numbers, self._make = trunks, urls, numbers, make

    def routes(self) -> list[web.RouteDef]:
        trunk = _TRUNKS + "/{trunk}"
        return [
            web.get(_TRUNKS, self._list_trunks),
            web.post(_TRUNKS, self._create_trunk),
            web.get(trunk + "/OriginationUrls", self._list_urls),
            web.post(trunk + "/OriginationUrls", self._create_url),
            web.post(trunk + "/OriginationUrls/{sid}", self._change_url),
            web.get(trunk + "/PhoneNumbers", self._list_assigned),
            web.post(trunk + "/PhoneNumbers", self._assign),
            web.delete(trunk + "/PhoneNumbers/{sid}", self._unassign),
        ]

    def _trunk(self, request: web.Request) -> Row:
        row = self._trunks.get(request.match_info["trunk"])
        if row is None or row["account_sid"] != request[ACCOUNT]:
            raise missing()
        return row

    async def _list_trunks(self, request: web.Request) -> web.Response:
        mine = [t for t in self._trunks.values() if t["account_sid"] == request[ACCOUNT]]
        return page(request, "trunks", mine)

    async def _create_trunk(self, request: web.Request) -> web.Response:
        name = str((await request.post()).get("FriendlyName", ""))
        return web.json_response(self._make(request[ACCOUNT], name), status=201)

    async def _list_urls(self, request: web.Request) -> web.Response:
        trunk = self._trunk(request)["sid"]
        rows = [url for url in self._urls.values() if url["trunk_sid"] == trunk]
        return page(request, "origination_urls", rows)

    async def _create_url(self, request: web.Request) -> web.Response:
        form = await request.post()
        if not str(form.get("SipUrl", "")).startswith("sip:"):
            raise Refused(400, 21245, "Invalid SipUrl")
        row = {"sid": new_sid("OU"), "trunk_sid": self._trunk(request)["sid"]}
        row |= {"friendly_name": form["FriendlyName"], "sip_url": form["SipUrl"], "enabled": True}
        self._urls[row["sid"]] = row
        return web.json_response(row, status=201)

    async def _change_url(self, request: web.Request) -> web.Response:
        row = self._urls.get(request.match_info["sid"])
        if row is None or row["trunk_sid"] != self._trunk(request)["sid"]:
            raise missing()
        form = await request.post()
        row.update(sip_url=form.get("SipUrl", row["sip_url"]), enabled=True)
        return web.json_response(row)

    async def _list_assigned(self, request: web.Request) -> web.Response:
        trunk = self._trunk(request)["sid"]
        rows = [row for row in self._numbers.values() if row["trunk_sid"] == trunk]
        return page(request, "phone_numbers", rows)

    async def _assign(self, request: web.Request) -> web.Response:
        trunk = self._trunk(request)["sid"]
        row = self._number(request, str((await request.post())["PhoneNumberSid"]))
        if row["trunk_sid"] not in (None, trunk):
            raise Refused(400, 21245, "Phone number is associated with another trunk")
        row.update(trunk_sid=trunk, voice_application_sid="")
        return web.json_response(row, status=201)

    async def _unassign(self, request: web.Request) -> web.Response:
        row = self._number(request, request.match_info["sid"])
        if row["trunk_sid"] != self._trunk(request)["sid"]:
            raise missing()
        row["trunk_sid"] = None
        return web.Response(status=204)

    def _number(self, request: web.Request, sid: str) -> Row:
        row = self._numbers.get(sid)
        if row is None or row["account_sid"] != request[ACCOUNT]:
            raise missing()
        return row
