"""Asks a gateway for the diagnosis of a call, as a tenant does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp

from tests.conftest import ACME


async def diagnosis_of(
    http: aiohttp.ClientSession,
    call_id: str,
    headers: Mapping[str, str] = ACME,
    *,
    gateway_url: str = "",
) -> dict[str, Any]:
    """Return the diagnosis. Its cause rests on events of its timeline."""
    url = f"{gateway_url}/v1/calls/{call_id}/diagnosis"
    async with http.get(url, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        found = dict(await answer.json())
    shown = {line["eventId"] for line in found["timeline"]}
    for finding in (found, *found["others"]):
        assert {line["eventId"] for line in finding["evidence"]} <= shown
    if found["code"] is not None:
        assert found["verdict"] == "fault" and found["cause"] and found["advice"]
        assert found["evidence"]
    return found
