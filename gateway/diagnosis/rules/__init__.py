"""The rules, in order: of two findings of the same weight the first one is the cause."""

from __future__ import annotations

from gateway.diagnosis.finding import Rule
from gateway.diagnosis.rules import (
    agent,
    answers,
    arrival,
    dialling,
    endings,
    extras,
    link,
    providers,
    sessions,
    transfers,
    webhook,
)

RULES: tuple[Rule, ...] = (
    *arrival.RULES,
    *agent.RULES,
    *providers.ENDINGS,
    *sessions.RULES,
    *link.RULES,
    *dialling.RULES,
    *answers.RULES,
    *webhook.RULES,
    *providers.RULES,
    *endings.RULES,
    *transfers.RULES,
    *extras.RULES,
)
