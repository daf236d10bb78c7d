"""A local server for the part of Twilio's REST API that this system uses.

It serves the phone numbers (list, search, buy, change, release) of ``api.twilio.com`` and the
Elastic SIP Trunking (trunks, origination URLs, their numbers) of ``trunking.twilio.com`` on one
port: their paths do not overlap. It has basic authentication, Twilio's errors and pagination, and
faults on demand.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from dev.standins.faults import Faults, Faulty

Row = dict[str, Any]
_OLD = "/2010-04-01/Accounts/{account}"
_TRUNKS = "/v1/Trunks"
_ACCOUNT: web.RequestKey[str] = web.RequestKey("account", str)


def new_sid(prefix: str) -> str:
    return prefix + secrets.token_hex(16)


class Refused(Exception):
    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class TwilioServer:
    """``async with TwilioServer({sid: token}) as twilio``: it listens inside the block."""

    def __init__(self, accounts: Mapping[str, str], *, host: str = "127.0.0.1") -> None:
        self.accounts = dict(accounts)
        self.inventory: list[Row] = []
        self.numbers: dict[str, Row] = {}
        self.trunks: dict[str, Row] = {}
        self.urls: dict[str, Row] = {}
        self.requests: list[str] = []
        """``METHOD path`` of each request, in order."""
        self.faults = Faults()
        self.fail = self.faults.fail
        self._host = host
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        assert self._runner is not None, "the server is not running"
        return f"http://{self._host}:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._edge])
        app.add_routes(self._routes())
        # A request that hangs on purpose ends when its client goes away.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=1, access_log=None
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, 0).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # --- Set up by tests

    def give(self, account: str, phone_number: str, **columns: Any) -> Row:
        """Add a number that the account owns."""
        row = {
            "sid": new_sid("PN"),
            "account_sid": account,
            "phone_number": phone_number,
            "friendly_name": phone_number,
            "trunk_sid": None,
            "voice_application_sid": "",
            "voice_url": "https://demo.twilio.com/welcome/voice/",
            **columns,
        }
        self.numbers[row["sid"]] = row
        return row

    def offer(self, phone_number: str, country: str = "US", **columns: Any) -> None:
        """Add a number that can be bought."""
        row = {"phone_number": phone_number, "iso_country": country, "locality": "", "region": ""}
        self.inventory.append({**row, **columns})

    def make_trunk(self, account: str, name: str) -> Row:
        row = {"sid": new_sid("TK"), "account_sid": account, "friendly_name": name}
        self.trunks[row["sid"]] = row
        return row

    # --- The edge: authentication and faults

    @web.middleware
    async def _edge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        line = f"{request.method} {request.path}"
        self.requests.append(line)
        try:
            request[_ACCOUNT] = self._authenticate(request)
            return await self._faulty(request, handler, line)
        except Refused as error:
            body = {
                "code": error.code,
                "message": error.message,
                "more_info": f"https://www.twilio.com/docs/errors/{error.code}",
                "status": error.status,
            }
            return web.json_response(body, status=error.status)

    async def _faulty(self, request: web.Request, handler: Any, line: str) -> web.StreamResponse:
        try:
            return await self.faults.apply(line, lambda: self._answer(request, handler))
        except Faulty as error:
            raise Refused(error.fault.status, error.fault.code, "Asked for") from None

    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            answer: web.StreamResponse = await handler(request)
        except web.HTTPException:
            raise _missing() from None
        return answer

    def _authenticate(self, request: web.Request) -> str:
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        try:
            user, _, password = base64.b64decode(text, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            user = password = ""
        named = request.match_info.get("account", user)
        if scheme != "Basic" or self.accounts.get(user) != password or named != user:
            raise Refused(401, 20003, "Authenticate")
        return user

    # --- api.twilio.com

    def _routes(self) -> list[web.RouteDef]:
        numbers, number = f"{_OLD}/IncomingPhoneNumbers.json", f"{_OLD}/IncomingPhoneNumbers"
        trunk = _TRUNKS + "/{trunk}"
        return [
            web.get(numbers, self._list_numbers),
            web.post(numbers, self._buy),
            web.get(number + "/{sid}.json", self._show_number),
            web.post(number + "/{sid}.json", self._change_number),
            web.delete(number + "/{sid}.json", self._release),
            web.get(_OLD + "/AvailablePhoneNumbers/{country}/Local.json", self._available),
            web.get(_TRUNKS, self._list_trunks),
            web.post(_TRUNKS, self._create_trunk),
            web.get(trunk + "/OriginationUrls", self._list_urls),
            web.post(trunk + "/OriginationUrls", self._create_url),
            web.post(trunk + "/OriginationUrls/{sid}", self._change_url),
            web.get(trunk + "/PhoneNumbers", self._list_assigned),
            web.post(trunk + "/PhoneNumbers", self._assign),
            web.delete(trunk + "/PhoneNumbers/{sid}", self._unassign),
        ]

    def _number(self, request: web.Request, sid: str | None = None) -> Row:
        row = self.numbers.get(sid or request.match_info["sid"])
        if row is None or row["account_sid"] != request[_ACCOUNT]:
            raise _missing()
        return row

    async def _list_numbers(self, request: web.Request) -> web.Response:
        wanted = request.query.get("PhoneNumber", "").strip("+")
        rows = [
            row
            for row in self.numbers.values()
            if row["account_sid"] == request[_ACCOUNT] and wanted in row["phone_number"]
        ]
        return _old_page(request, "incoming_phone_numbers", rows)

    async def _buy(self, request: web.Request) -> web.Response:
        form = await request.post()
        offered = next(
            (r for r in self.inventory if r["phone_number"] == form["PhoneNumber"]), None
        )
        if offered is None:
            raise Refused(400, 21422, "Phone number is not available")
        self.inventory.remove(offered)
        name = str(form.get("FriendlyName", offered["phone_number"]))
        row = self.give(request[_ACCOUNT], offered["phone_number"], friendly_name=name)
        return web.json_response(row, status=201)

    async def _show_number(self, request: web.Request) -> web.Response:
        return web.json_response(self._number(request))

    async def _change_number(self, request: web.Request) -> web.Response:
        row, form = self._number(request), await request.post()
        if "VoiceApplicationSid" in form:
            # Twilio's documentation: the application and the trunk exclude each other.
            row.update(voice_application_sid=form["VoiceApplicationSid"], trunk_sid=None)
        return web.json_response(row)

    async def _release(self, request: web.Request) -> web.Response:
        del self.numbers[self._number(request)["sid"]]
        return web.Response(status=204)

    async def _available(self, request: web.Request) -> web.Response:
        country = request.match_info["country"]
        offered = [row for row in self.inventory if row["iso_country"] == country]
        if not offered:
            raise _missing()
        area, region = request.query.get("AreaCode"), request.query.get("InRegion")
        rows = [
            row
            for row in offered
            if (area is None or row["phone_number"].startswith(f"+1{area}"))
            and (region is None or row["region"] == region)
        ]
        return _old_page(request, "available_phone_numbers", rows)

    # --- trunking.twilio.com

    def _trunk(self, request: web.Request) -> Row:
        row = self.trunks.get(request.match_info["trunk"])
        if row is None or row["account_sid"] != request[_ACCOUNT]:
            raise _missing()
        return row

    async def _list_trunks(self, request: web.Request) -> web.Response:
        mine = [t for t in self.trunks.values() if t["account_sid"] == request[_ACCOUNT]]
        return self._page(request, "trunks", mine)

    async def _create_trunk(self, request: web.Request) -> web.Response:
        name = str((await request.post()).get("FriendlyName", ""))
        return web.json_response(self.make_trunk(request[_ACCOUNT], name), status=201)

    async def _list_urls(self, request: web.Request) -> web.Response:
        trunk = self._trunk(request)["sid"]
        rows = [url for url in self.urls.values() if url["trunk_sid"] == trunk]
        return self._page(request, "origination_urls", rows)

    async def _create_url(self, request: web.Request) -> web.Response:
        form = await request.post()
        if not str(form.get("SipUrl", "")).startswith("sip:"):
            raise Refused(400, 21245, "Invalid SipUrl")
        row = {"sid": new_sid("OU"), "trunk_sid": self._trunk(request)["sid"]}
        row |= {"friendly_name": form["FriendlyName"], "sip_url": form["SipUrl"], "enabled": True}
        self.urls[row["sid"]] = row
        return web.json_response(row, status=201)

    async def _change_url(self, request: web.Request) -> web.Response:
        row = self.urls.get(request.match_info["sid"])
        if row is None or row["trunk_sid"] != self._trunk(request)["sid"]:
            raise _missing()
        form = await request.post()
        row.update(sip_url=form.get("SipUrl", row["sip_url"]), enabled=True)
        return web.json_response(row)

    async def _list_assigned(self, request: web.Request) -> web.Response:
        trunk = self._trunk(request)["sid"]
        rows = [row for row in self.numbers.values() if row["trunk_sid"] == trunk]
        return self._page(request, "phone_numbers", rows)

    async def _assign(self, request: web.Request) -> web.Response:
        trunk = self._trunk(request)["sid"]
        row = self._number(request, str((await request.post())["PhoneNumberSid"]))
        if row["trunk_sid"] not in (None, trunk):
            raise Refused(400, 21245, "Phone number is associated with another trunk")
        row.update(trunk_sid=trunk, voice_application_sid="")
        return web.json_response(row, status=201)

    async def _unassign(self, request: web.Request) -> web.Response:
        row = self._number(request)
        if row["trunk_sid"] != self._trunk(request)["sid"]:
            raise _missing()
        row["trunk_sid"] = None
        return web.Response(status=204)

    def _page(self, request: web.Request, key: str, rows: list[Row]) -> web.Response:
        """Return a page of the newer APIs: ``meta`` has the list's key and the next page's URL."""
        part, following = _cut(request, rows)
        url = None if following is None else f"{self.url}{following}"
        return web.json_response({key: part, "meta": {"key": key, "next_page_url": url}})


def _old_page(request: web.Request, key: str, rows: list[Row]) -> web.Response:
    part, following = _cut(request, rows)
    return web.json_response({key: part, "next_page_uri": following, "page": 0})


def _cut(request: web.Request, rows: list[Row]) -> tuple[list[Row], str | None]:
    """Return the requested page, and the path of the next one."""
    number, size = int(request.query.get("Page", 0)), int(request.query.get("PageSize", 50))
    query = {**request.query, "Page": str(number + 1)}
    more = len(rows) > (number + 1) * size
    part = rows[number * size : (number + 1) * size]
    return part, str(request.rel_url.with_query(query)) if more else None


def _missing() -> Refused:
    return Refused(404, 20404, "The requested resource was not found")
