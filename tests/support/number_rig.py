"""A gateway in the test's process, the SIP API that it provisions, and a Twilio stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.models import PhoneNumber
from dev.standins.twilio import TwilioServer
from gateway.keys import NUMBERS, call_services
from gateway.numbers.provisioning import Provisioner
from gateway.numbers.repair import NumberRepair
from tests.conftest import Answered, Gateway
from tests.support.inprocess import Running, running, settings_in
from tests.support.sip_api import SipApi, sip_api

ACCOUNT, TOKEN = "AC" + "1" * 32, "the-auth-token"
NUMBER = "+14155550123"
PUBLIC = "sip.example.com:5060;transport=tcp"
PUBLIC_URL = "https://voice.example.com"
ATTACH = "/api/v1/phone-numbers/attach"
API, V1 = "/api/v1/phone-numbers", "/v1/numbers"
TWILIO = {"name": "main", "provider": "twilio", "accountSid": ACCOUNT, "authToken": TOKEN}
OFFICE = {
    "name": "office",
    "provider": "sip",
    "address": "pbx.example.com",
    "allowedAddresses": ["203.0.113.0/24"],
}


@dataclass(frozen=True)
class Rig:
    own: Running
    api: Gateway
    sip: SipApi
    twilio: TwilioServer

    @property
    def provisioner(self) -> Provisioner:
        return call_services(self.own.app).provisioner

    @property
    def repair(self) -> NumberRepair:
        return NumberRepair(self.provisioner)

    async def rows(self) -> list[PhoneNumber]:
        return await self.own.app[NUMBERS].provisioned()

    async def credential(self, body: dict[str, Any], **options: Any) -> str:
        answer = await self.api.post("/api/v1/credentials", json=body, **options)
        assert answer.status == 201, answer.body
        return str(answer.body["data"]["id"])

    async def agent(self, **options: Any) -> str:
        answer = await self.api.post("/v1/agents", json={"name": "Ann"}, **options)
        assert answer.status == 200, answer.body
        return str(answer.body["id"])

    async def attach(self, provider: str = "sip", **fields: Any) -> Answered:
        options = {"headers": fields.pop("headers")} if "headers" in fields else {}
        body = {"provider": provider, "phoneNumber": NUMBER, **fields}
        return await self.api.post(ATTACH, json=body, **options)

    async def attached(self, provider: str = "sip", **fields: Any) -> Any:
        answer = await self.attach(provider, **fields)
        assert answer.status == 201, answer.body
        return answer.body["data"]


@asynccontextmanager
async def number_rig(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    async with TwilioServer({ACCOUNT: TOKEN}) as twilio, sip_api(folder) as sip:
        values = {
            "livekit_sip_url": sip.url,
            "twilio_base_url": twilio.url,
            "sip_public_address": PUBLIC,
            **settings,
        }
        async with running(settings_in(folder, **values)) as own:
            yield Rig(own, Gateway(own.http), sip, twilio)


def code(answer: Answered) -> str:
    """Return the code of an error response in either API's shape."""
    body = answer.body
    return str(body["meta"]["code"] if "meta" in body else body["error"]["code"])
