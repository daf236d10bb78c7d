"""Nothing secret is written anywhere: no log at any level, event, metric, error or file name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dev.phone import Phone
from dev.sip.digest import Credentials
from dev.stack import Stack
from dev.standins.trunk import Trunk
from tests.conftest import (
    ACME,
    GLOBAL_PASSWORD,
    JWT_SECRET,
    SECRETS,
    Gateway,
    operator,
)
from tests.support.calls import Placed, request, told

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

SIP_PASSWORD = "sip-passw0rd-of-anna"
# A JSON Web Token, and the hash in a digest answer (RFC 7616 §3.4).
SHAPES = {
    "a token": re.compile(r"eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"),
    "a digest answer": re.compile(r"response=\\?\"[0-9a-f]{32}"),
}


async def test_no_secret_is_written(gateway: Gateway, stack: Stack, phone: Phone) -> None:
    texts: dict[str, str] = {}
    async with Trunk(phone.address, Credentials("anna", SIP_PASSWORD)) as trunk:
        for password in (SIP_PASSWORD, SIP_PASSWORD + "-but-wrong"):
            sip = {
                "outbound_address": trunk.address,
                "auth_username": "anna",
                "auth_password": password,
            }
            call = await Placed.place(gateway, request(phone.address, sip=sip))
            if password == SIP_PASSWORD:
                up = await phone.next_call(5)
                await up.answered(5)
                await up.listen(30)
                await told(gateway, call.call_id, "agent.ready")
                await up.hangup()
            await call.record()
            url = f"/v1/calls/{call.call_id}"
            for path in (url, f"{url}/events"):
                async with gateway.session.get(path, headers=ACME) as response:
                    texts[path] = await response.text()
        dry = request(trunk.address, sip=sip, dry_run=True)
        texts["dry run"] = str((await gateway.post("/sip/call", json=dry)).body)
        bad = request(trunk.address, sip={**sip, "auth_password": [SIP_PASSWORD]})
        texts["error"] = str((await gateway.post("/sip/call", json=bad)).body)
    texts["operator"] = str((await gateway.get("/v1/calls", headers=operator())).body)
    async with gateway.session.get("/metrics") as response:
        texts["metrics"] = await response.text()
    for name in stack.components:
        texts[f"log of {name}"] = stack.log_text(name)
    assert "call over" in texts["log of worker"]
    assert '"level": "debug"' in texts["log of gateway"] + texts["log of bridge"]
    texts["file names"] = "\n".join(str(path) for path in stack.run_dir.rglob("*"))
    texts["database"] = _database(stack)
    livekit_secret = stack.settings.livekit_api_secret
    assert livekit_secret is not None
    secrets = {
        "the SIP password": SIP_PASSWORD,
        "the global SIP password": GLOBAL_PASSWORD,
        "the JWT secret": JWT_SECRET,
        "LiveKit's secret": livekit_secret.get_secret_value(),
        **{f"the API secret of {tenant}": secret for tenant, secret in SECRETS.items()},
    }
    found = [
        f"{secret} in {where}"
        for where, text in texts.items()
        for secret, value in secrets.items()
        if value in text
    ]
    found += [
        f"{shape} in {where}: {match[0][:20]}…"
        for where, text in texts.items()
        for shape, pattern in SHAPES.items()
        if (match := pattern.search(text))
    ]
    assert not found


def _database(stack: Stack) -> str:
    url = stack.settings.database_url.removeprefix("sqlite:///")
    files = [Path(url), Path(f"{url}-wal")]
    return "".join(file.read_bytes().decode("latin-1") for file in files if file.exists())
