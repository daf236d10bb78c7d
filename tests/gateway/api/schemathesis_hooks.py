"""Schemathesis hooks of test_schemathesis.py: they change each request before it is sent."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import schemathesis

_HEADER = "Idempotency-Key"
_AGENTS = re.findall(r'"(.*)"', Path("agents.dict").read_text())
_WEBHOOK = Path("webhook.txt").read_text()
_count = itertools.count()


@schemathesis.hook
def before_call(
    _context: schemathesis.HookContext, case: schemathesis.Case[Any], _kwargs: dict[str, Any]
) -> None:
    number = next(_count)
    _renew_key(case, number)
    if isinstance(case.body, dict):
        _name_an_agent(case.body, number)
        if case.path.endswith(("/webhook", "/webhooks")):
            _lead_to_us(case.body)


def _renew_key(case: schemathesis.Case[Any], number: int) -> None:
    """Make most keys unique: most requests have the same one and would only get a 409."""
    key = case.headers.get(_HEADER)
    if isinstance(key, str) and re.fullmatch(r"[ -~]{1,200}", key) and number % 5:
        case.headers[_HEADER] = f"{key}-{number}"


def _name_an_agent(body: dict[str, Any], number: int) -> None:
    """Name an existing agent in two of three bodies: an unknown one hides all later checks."""
    given = body.get("agentId")
    if isinstance(given, str) and 1 <= len(given) <= 64 and number % 3:
        body["agentId"] = _AGENTS[0]


def _lead_to_us(body: dict[str, Any]) -> None:
    """Send webhooks to the test's receiver, never to a host that the fuzzer made up."""
    given = body.get("url")
    if isinstance(given, str) and given.startswith(("http://", "https://")):
        body["url"] = _WEBHOOK
