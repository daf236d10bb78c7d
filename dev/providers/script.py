"""The scripted model: it answers a conversation by the rules of a script."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from dev.providers.control import Rule, Script
from dev.speech import normalize


@dataclass(frozen=True)
class Message:
    """One message of the conversation, with its content as plain text."""

    role: str
    text: str
    tool_name: str | None = None


@dataclass(frozen=True)
class Answer:
    """``rule`` is the index of the rule that matched; None for the default.

    ``delay_ms``: the rule's.
    """

    text: str
    tool_name: str | None = None
    arguments: str = ""
    rule: int | None = None
    delay_ms: float = 0.0


def answer(script: Script, messages: Sequence[Message], tools: Iterable[str]) -> Answer:
    """Return the answer to the last message. A tool that was not offered is never called."""
    offered = set(tools)
    for index, rule in enumerate(script.rules):
        if rule.call is not None and rule.call.name not in offered and rule.reply is None:
            continue
        for text in _subjects(rule, messages):
            values = _match(rule, text, messages)
            if values is not None:
                return _fill(rule, index, values, offered)
    return Answer(script.default)


def _subjects(rule: Rule, messages: Sequence[Message]) -> list[str]:
    """Return the texts that a rule may match: the last message, and all unanswered user messages.

    A caller who pauses in mid-sentence produces two messages.
    """
    spoken = [message for message in messages if message.role in ("user", "assistant", "tool")]
    if not spoken:
        return [""] if rule.role == "none" else []
    last = spoken[-1]
    if last.role != rule.role:
        return []
    if last.role == "tool" and rule.tool_name not in (None, last.tool_name):
        return []
    waiting: list[str] = []
    for message in reversed(spoken):
        if message.role != "user":
            break
        waiting.insert(0, message.text)
    return [last.text] if len(waiting) < 2 else [last.text, " ".join(waiting)]


def _match(rule: Rule, text: str, messages: Sequence[Message]) -> dict[str, str] | None:
    """Return the values for the rule's placeholders, or None if it does not match."""
    words = normalize(text)
    if rule.equals is not None and normalize(rule.equals) != words:
        return None
    if not all(_contains(words, keyword) for keyword in rule.keywords):
        return None
    if rule.turn is not None and rule.turn != sum(m.role == "user" for m in messages):
        return None
    if rule.after is not None:
        said = next((m.text for m in reversed(messages) if m.role == "assistant" and m.text), "")
        if not _contains(normalize(said), rule.after):
            return None
    values = {"content": text}
    if rule.role == "tool":
        values |= _fields(text)
    if rule.pattern is not None:
        found = re.search(rule.pattern, text, re.IGNORECASE)
        if found is None:
            return None
        values |= {name: value or "" for name, value in found.groupdict().items()}
    return values


def _contains(words: str, phrase: str) -> bool:
    return f" {normalize(phrase)} " in f" {words} "


def _fields(text: str) -> dict[str, str]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in document.items()
    }


def _fill(rule: Rule, index: int, values: Mapping[str, str], offered: set[str]) -> Answer:
    text = Template(rule.reply or "").safe_substitute(values)
    if rule.call is None or rule.call.name not in offered:
        return Answer(text, rule=index, delay_ms=rule.delay_ms)
    arguments = json.dumps(_fill_value(rule.call.arguments, values))
    return Answer(text, rule.call.name, arguments, index, rule.delay_ms)


def _fill_value(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return Template(value).safe_substitute(values)
    if isinstance(value, dict):
        return {name: _fill_value(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [_fill_value(item, values) for item in value]
    return value
