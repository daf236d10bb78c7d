"""A local server for the part of Twilio that this system uses.

It serves the phone numbers (list, search, buy, change, release) and the calls of
``api.twilio.com`` and the Elastic SIP Trunking (trunks, origination URLs, their numbers) of
``trunking.twilio.com`` on one port: their paths do not overlap. It has basic authentication,
Twilio's errors and pagination, and faults on demand. Its calls run TwiML and stream their audio.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from dev.standins.faults import Faults, Faulty
from dev.standins.twilio.call import AfterBreak, Call, new_sid
from dev.standins.twilio.callees import Callee, Callees
from dev.standins.twilio.calls_api import CallsApi
from dev.standins.twilio.errors import Alert, Refused, missing
from dev.standins.twilio.exchange import Exchange
from dev.standins.twilio.hosts import Hosts
from dev.standins.twilio.media.network import Network
from dev.standins.twilio.media.ticker import Ticker
from dev.standins.twilio.numbers_api import NumbersApi
from dev.standins.twilio.pages import ACCOUNT, Row
from dev.standins.twilio.services import Services
from dev.standins.twilio.trunks_api import TrunksApi
from dev.standins.twilio.webhooks import Webhooks

_OLD = "/2010-04-01/Accounts/{account}"


class TwilioServer:
    """``async with TwilioServer({sid: token}) as twilio``: it listens inside the block.

    Leaving the block ends all calls. It raises AssertionError for loud alerts that the test did
    not take with ``take_alerts``.
    """

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
        self.verified: set[str] = set()
        """Numbers elsewhere from which all accounts may call."""
        self.hosts = Hosts()
        """``{"voice.example.com": "127.0.0.1:8080"}``: where public hosts are, without TLS.

        No other host is connected to than these and those of this machine.
        """
        self.network = Network()
        """That of the next calls."""
        self.after_break: AfterBreak = "redirect"
        """What the next calls do when a stream's socket breaks."""
        self._host = host
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        assert self._runner is not None, "the server is not running"
        return f"http://{self._host}:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        webhooks = Webhooks(self.accounts, self.hosts)
        self._services = Services(self.hosts, webhooks, Ticker(), Callees(), self._owns)
        self._exchange = Exchange(self._services)
        app = web.Application(middlewares=[self._edge])
        numbers = NumbersApi(self.numbers, self.inventory, self.give)
        trunks = TrunksApi(self.trunks, self.urls, self.numbers, self.make_trunk)
        calls = CallsApi(self._services, self._outbound, self._exchange.place)
        app.add_routes([*numbers.routes(_OLD), *trunks.routes(), *calls.routes(_OLD)])
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
        try:
            await self._exchange.stop()
        finally:
            await self._services.webhooks.close()
            if self._runner is not None:
                await self._runner.cleanup()
        loud = [alert for alert in self._services.alerts if alert.loud]
        assert kind is not None or not loud, f"alerts: {loud}"

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
            "voice_method": "POST",
            "voice_fallback_url": "",
            "voice_fallback_method": "POST",
            "status_callback": "",
            "status_callback_method": "POST",
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

    def callee(self, number: str, *callees: Callee) -> None:
        """Decide what the next calls to a number meet; the last callee stays."""
        self._services.callees.set(number, *callees)

    # --- Calls

    @property
    def calls(self) -> dict[str, Call]:
        """All calls by their SIDs."""
        return self._services.calls

    @property
    def webhooks(self) -> Webhooks:
        """The requests that were sent to the application, and their answers."""
        return self._services.webhooks

    async def call(self, number: str, from_: str, *, network: Network | None = None) -> Call:
        """Somebody calls a number that an account owns and that has a voice URL.

        It rings when this returns, and the voice URL is being asked.
        """
        row = next((row for row in self.numbers.values() if row["phone_number"] == number), None)
        assert row is not None, f"nobody owns {number}"
        assert not row["trunk_sid"], f"{number} is routed to a SIP trunk"
        call = self._made(row["account_sid"], from_, number, "inbound", network)
        self._exchange.receive(call, row)
        return call

    def take_alerts(self) -> list[Alert]:
        """Return the alerts so far, and forget them."""
        alerts = list(self._services.alerts)
        self._services.alerts.clear()
        return alerts

    def _outbound(self, account: str, from_: str, to: str) -> Call:
        return self._made(account, from_, to, "outbound-api", None)

    def _made(
        self, account: str, from_: str, to: str, direction: str, network: Network | None
    ) -> Call:
        call = Call(self._services, account, from_, to, direction, network=network or self.network)
        call.after_break = self.after_break
        return call

    def _owns(self, account: str, number: str) -> bool:
        return number in self.verified or any(
            row["account_sid"] == account and row["phone_number"] == number
            for row in self.numbers.values()
        )

    # --- The edge: authentication and faults

    @web.middleware
    async def _edge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        line = f"{request.method} {request.path}"
        self.requests.append(line)
        try:
            request[ACCOUNT] = self._authenticate(request)
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
            raise missing() from None
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
