"""The benchmarks' requests to our gateway."""

from __future__ import annotations

from typing import Any

import aiohttp

FROM, TO = "+15105550100", "+15105550123"


async def post(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with http.post(path, json=body) as response:
        response.raise_for_status()
        return dict(await response.json())


async def answering(http: aiohttp.ClientSession, number: str, agent: dict[str, Any]) -> str:
    """Publish the agent, and attach the number that it answers; return the agent's id."""
    agent_id = str((await post(http, "/v1/agents", agent))["id"])
    body = {"provider": "sip", "phoneNumber": number, "agentId": agent_id, "direction": "both"}
    await post(http, "/api/v1/phone-numbers/attach", body)
    return agent_id


def hosted(begin_message: str, **changes: Any) -> dict[str, Any]:
    """Return the body of a hosted agent with a greeting."""
    return {"name": "Bench", "voiceMode": "hosted", "beginMessage": begin_message, **changes}


def sip_call(room: str, **changes: Any) -> dict[str, Any]:
    """Return a body for POST /sip/call."""
    return {
        "room_name": room,
        "participant_name": "Bench",
        "participant_identity": "phone",
        "from_phone_number": FROM,
        "to_phone_number": TO,
        **changes,
    }
