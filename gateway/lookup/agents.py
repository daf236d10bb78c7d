"""Lookup of a call's agent, in its current version.

An agent is created through the API or is a YAML file, whose name is the agent's id. File agents
are available to every tenant. A change applies from the next call on: the gateway pins the
configuration in each call's record.
"""

from __future__ import annotations

import asyncio

from core.errors import Conflict, ServerFault
from core.models import Agent, PhoneNumber
from gateway.cache.base import Cache, agent_key
from gateway.lookup.agent_files import AgentFiles
from gateway.lookup.kept import Kept
from gateway.store.agents import ID_PREFIX, AgentStore, agent_not_found
from gateway.store.database import Scope
from gateway.store.webhooks import WebhookStore


class Agents:
    """Looks agents up for calls."""

    def __init__(self, files: AgentFiles, store: AgentStore, cache: Cache) -> None:
        self._files = files
        self._records = Kept(cache, agent_key, store.dump, store.parse, store.get)

    async def get(self, scope: Scope, agent_id: str) -> Agent | None:
        """Return the agent's current version, if the scope may use it.

        Raises Unavailable (no database), ServerFault ``CREDENTIAL_UNREADABLE``.
        """
        # Ids with this prefix may also be file names; all others are never in the database.
        if agent_id.startswith(ID_PREFIX):
            record = await self._records.get(scope, agent_id)
            if record is not None:
                return record.agent
        return await asyncio.to_thread(self._files.get, agent_id)

    async def require(self, scope: Scope, agent_id: str) -> Agent:
        """Return the agent as ``get`` does, or raise NotFound ``AGENT_NOT_FOUND``."""
        agent = await self.get(scope, agent_id)
        if agent is None:
            raise agent_not_found()
        return agent

    async def warm(self, agent_id: str) -> None:
        """Load the agent into the cache after it was created, changed or rolled back."""
        await self._records.warm(agent_id)


async def check_takes_calls(
    agent: Agent, auth_id: str | None, webhooks: WebhookStore, *, record: bool
) -> None:
    """Check that the agent can take a call of tenant ``auth_id``, and record it if asked to.

    Raises Conflict.
    """
    if not agent.config.enabled:
        raise Conflict("The agent is disabled", code="AGENT_DISABLED")
    if agent.config.voice_mode == "webhook" and not await webhooks.has(auth_id or "", agent.id):
        raise Conflict(
            "No webhook is set for the agent or its project; set one, or voiceMode to hosted",
            code="WEBHOOK_NOT_CONFIGURED",
        )
    check_records(agent, record=record)


def check_records(agent: Agent | None, *, record: bool) -> None:
    """Refuse to ignore a request for a recording. Raises Conflict ``RECORDING_NOT_ENABLED``."""
    if record and (agent is None or not agent.config.recording.enabled):
        reason = "No agent joins the call" if agent is None else "The agent's recording is disabled"
        raise Conflict(f"{reason}, so it cannot be recorded", code="RECORDING_NOT_ENABLED")


async def answering_agent(
    number: PhoneNumber | None, agents: Agents, webhooks: WebhookStore
) -> tuple[Agent | None, str | None]:
    """Return the agent that answers the number's calls, and why none can. Raises Unavailable."""
    if number is None or number.status in {"pending", "detaching"}:
        return None, "number_not_attached"
    agent = None
    if number.agent_id is not None:
        try:
            agent = await agents.get(Scope(number.auth_id), number.agent_id)
        except ServerFault as error:
            return None, error.code.lower()
    if number.direction == "outbound":
        return agent, "number_outbound_only"
    if agent is None:
        return None, "agent_not_found" if number.agent_id else "number_without_agent"
    try:
        # The number's opt-in is a standing one: it holds once the agent's recording is enabled.
        await check_takes_calls(agent, number.auth_id, webhooks, record=False)
    except Conflict as error:
        return agent, error.code.lower()
    return agent, None
