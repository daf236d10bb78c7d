"""Incoming calls that no agent could take, by the note of their end."""

from __future__ import annotations

from gateway.diagnosis.facts import Facts
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence


def noted(code: str, note: str, cause: str, advice: str) -> Rule:
    """Return a rule for calls whose end has this note."""

    def rule(facts: Facts) -> Finding | None:
        end = facts.ends_with("note", note)
        if end is None:
            return None
        return Finding(code, Weight.ENDED, cause, advice, evidence(end))

    rule.__name__ = code
    return rule


RULES: tuple[Rule, ...] = (
    noted(
        "number_without_agent",
        "number_without_agent",
        "The called number is bound to no agent.",
        "Bind it: POST /v1/agents/{id}/numbers.",
    ),
    noted(
        "agent_not_found",
        "agent_not_found",
        "The called number is bound to an agent that was deleted.",
        "Bind it to another agent: POST /v1/agents/{id}/numbers.",
    ),
    noted(
        "agent_disabled",
        "agent_disabled",
        "The agent of the called number takes no calls.",
        "Set the agent's enabled to true, or bind the number to another agent.",
    ),
    noted(
        "webhook_not_configured",
        "webhook_not_configured",
        "The agent's turns are to be answered by a webhook, and none is set.",
        "Set one with POST /v1/webhooks, or make the agent hosted (voiceMode).",
    ),
    noted(
        "number_outbound_only",
        "number_outbound_only",
        "The called number is for outgoing calls only.",
        "Change the number's direction to both or inbound.",
    ),
    noted(
        "number_not_attached",
        "number_not_attached",
        "The called number is being detached, or is not approved yet.",
        "An operator approves numbers: see number ownership in the operations guide.",
    ),
    noted(
        "concurrency_limit",
        "concurrency_limit",
        "The tenant had as many calls as it may have.",
        "Raise MAX_CONCURRENT_CALLS, add workers, or end calls earlier.",
    ),
    noted(
        "no_worker",
        "no_worker",
        "No agent worker was running: none had sent a heartbeat.",
        "Start a worker. If one runs, check its GATEWAY_URL, and that AGENT_NAME is the same.",
    ),
    noted(
        "workers_full",
        "workers_full",
        "All agent workers were full.",
        "Add workers, or raise WORKER_MAX_CALLS if the machine has CPU to spare.",
    ),
    noted(
        "workers_draining",
        "workers_draining",
        "All agent workers were stopping, and took no new calls.",
        "Start the new workers of an upgrade before the old ones are stopped.",
    ),
    noted(
        "no_stream_worker",
        "no_stream_worker",
        "No stream worker took the session: none was running, or all were full or stopping.",
        "Start python -m worker streams, or more of them, and check STREAMS_URL.",
    ),
)
