"""URLs with a login are refused; a login that an earlier release stored is not shown."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from sqlalchemy import update

from core.models import http_url
from dev.stack.environment import GivenSettings
from gateway.fields.url_login import split_login
from gateway.keys import AGENT_STORE, DATABASE, WEBHOOKS
from gateway.lookup.agent_files import AgentFiles, BadAgentFile
from gateway.store.agent_secrets import AgentSecrets
from gateway.store.credentials import Vault
from gateway.store.database import Scope
from gateway.store.tables import AgentRow, AgentVersionRow, WebhookRow
from tests.conftest import ACME
from tests.support.inprocess import Running, running, settings_in

pytestmark = [pytest.mark.unit, pytest.mark.attack, pytest.mark.asyncio(loop_scope="module")]

PASSWORD = "s3cret-pw"
WITH_LOGIN = [
    f"https://user:{PASSWORD}@example.com/find",
    f"https://user:{PASSWORD}@example.com:8443/find?q=1",
    f"https://:{PASSWORD}@example.com/",
    f"https://{PASSWORD}@example.com/",
    f"HTTPS://USER:{PASSWORD}@EXAMPLE.COM",
    f"http://user:{PASSWORD}@[2606:4700::1111]/",
    f"https://user%3A{PASSWORD}@example.com/",
    f"https://example.com:{PASSWORD}@other.example/",
    f"https://a@b:{PASSWORD}@example.com/",
    f"https://user:{PASSWORD}@example.com?x",
    "https://@example.com/",
]
WITHOUT = [
    "https://example.com/@user",
    "https://example.com/?to=a@b.example",
    "https://example.com?to=a:b@c.example",
    "https://example.com:8443/find",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path_factory.mktemp("gateway"))) as own:
        yield own


async def asked(
    gateway: Running, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[int, Any, str]:
    async with gateway.http.request(method, path, json=body, headers=ACME) as response:
        return response.status, await response.json(), await response.text()


def tool(url: str) -> dict[str, Any]:
    return {"customTools": [{"name": "find", "description": "Finds", "url": url}]}


@pytest.mark.parametrize("url", WITHOUT)
async def test_an_address_without_one(url: str) -> None:
    assert http_url(url) == url
    assert split_login(url) == (url, None)


@pytest.mark.parametrize("url", WITH_LOGIN)
async def test_refused_wherever_an_address_is_given(
    gateway: Running, tmp_path: Path, url: str
) -> None:
    for path, body, field in (
        ("/v1/agents", {"name": "One", **tool(url)}, "customTools.0.url"),
        ("/v1/agents", {"name": "One", "mcpServers": [{"url": url}]}, "mcpServers.0.url"),
        ("/v1/webhooks", {"url": url}, "url"),
    ):
        status, answer, text = await asked(gateway, "POST", path, body)
        assert status == 422, path
        (fault,) = answer["error"]["details"]
        assert fault["field"] == field
        assert fault["message"] == "must not hold a user name or a password"
        assert PASSWORD not in text
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"name": "One", **tool(url)}))
    with pytest.raises(BadAgentFile, match=r"customTools\.0\.url: .*a password") as refused:
        AgentFiles(GivenSettings(agents_dir=tmp_path)).check()
    assert PASSWORD not in str(refused.value)


KEPT = f"https://us%40er:{PASSWORD}@example.com:8443/find?q=1"
BARE = "https://example.com:8443/find?q=1"
BASIC = "Basic " + base64.b64encode(f"us@er:{PASSWORD}".encode()).decode()


@pytest.mark.parametrize("own", [{}, {"X-Shop": "7"}, {"authorization": "Bearer 1"}])
async def test_one_that_was_kept_is_a_header_from_now_on(own: dict[str, str]) -> None:
    secrets = AgentSecrets(Vault([base64.urlsafe_b64encode(b"k" * 32).decode()]))
    kept = secrets.seal({"customTools": [{"name": "find", "url": KEPT, "headers": own}]})
    (opened,) = secrets.open(kept)["customTools"]
    wanted = own if "authorization" in own else {**own, "Authorization": BASIC}
    assert opened == {"name": "find", "url": BARE, "headers": wanted}
    assert PASSWORD not in str(secrets.seal({"customTools": [opened]}))


async def test_a_kept_agent_shows_no_password_and_works_as_before(gateway: Running) -> None:
    body = {"name": "One", **tool(BARE), "mcpServers": [{"url": BARE}]}
    status, made, _ = await asked(gateway, "POST", "/v1/agents", body)
    assert status == 200
    # An earlier release stored the login within the URL.
    config = {"name": "One", **tool(KEPT), "mcpServers": [{"url": KEPT}]}
    async with gateway.app[DATABASE].write() as connection:
        await connection.execute(
            update(AgentRow).where(AgentRow.id == made["id"]).values(config=config)
        )
        await connection.execute(
            update(AgentVersionRow)
            .where(AgentVersionRow.agent_id == made["id"])
            .values(config=config)
        )
    for path in (f"/v1/agents/{made['id']}", f"/v1/agents/{made['id']}/versions", "/v1/agents"):
        status, answer, text = await asked(gateway, "GET", path)
        assert (status, PASSWORD in text) == (200, False), path
        assert "us%40er" not in text
        assert BASIC in text
    used = await gateway.app[AGENT_STORE].get(Scope("acme"), made["id"])
    assert used is not None
    assert used.config.custom_tools[0].headers == {"Authorization": BASIC}
    status, _, _ = await asked(gateway, "PATCH", f"/v1/agents/{made['id']}", {"name": "Two"})
    assert status == 200
    async with gateway.app[DATABASE].read() as connection:
        columns = AgentRow.__table__.select().where(AgentRow.id == made["id"])
        (row,) = (await connection.execute(columns)).mappings()
    assert PASSWORD not in str(row["config"])
    status, _, text = await asked(gateway, "DELETE", f"/v1/agents/{made['id']}")
    assert (status, PASSWORD in text) == (200, False)


async def test_a_kept_webhook_shows_no_password_and_works_as_before(gateway: Running) -> None:
    assert (await asked(gateway, "POST", "/v1/webhooks", {"url": BARE}))[0] == 200
    async with gateway.app[DATABASE].write() as connection:
        await connection.execute(update(WebhookRow).values(url=KEPT))
    status, answer, text = await asked(gateway, "GET", "/v1/webhooks")
    assert (status, answer["url"], PASSWORD in text) == (200, BARE, False)
    endpoint = await gateway.app[WEBHOOKS].get("acme", "")
    assert endpoint is not None and endpoint.url == KEPT
