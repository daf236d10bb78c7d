from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from core.errors import Unprocessable
from core.models import Agent, AgentConfig, CustomTool, McpServer
from gateway.calls.variables import fill, mark_of

pytestmark = pytest.mark.unit

CONFIG = AgentConfig(
    name="{{who}}",
    system_prompt="Help {{ who }} with {{order}}; {{unknown}} and {{{who}}} and {who}.",
    begin_message="Hello {{who}}!",
    voicemail_message="Call back, {{who}}.",
)
AGENT = Agent(id="agt_1", version=3, config=CONFIG)


def test_placeholders_become_values() -> None:
    filled = fill(AGENT, {"who": "Ann", "order": None})
    assert filled.config.begin_message == "Hello Ann!"
    assert filled.config.voicemail_message == "Call back, Ann."
    assert filled.config.system_prompt == "Help Ann with ; {{unknown}} and {Ann} and {who}."
    assert filled.config.name == "{{who}}"
    assert (filled.id, filled.version) == ("agt_1", 3)
    assert AGENT.config is CONFIG, "the agent itself is not changed"


SPOKEN = {
    "system_prompt",
    "begin_message",
    "fallback_message",
    "reentry_message",
    "max_duration_warning",
    "silence_prompts",
    "voicemail_message",
    "transfer_briefing",
}
# Text that is not spoken and not given to a model.
UNSPOKEN = {"name", "description", "language", "voice", "stt", "model", "tts", "transfer_number"}


def _texts(model: type[BaseModel]) -> set[str]:
    """Return the fields that can hold free text, alone or in a list."""

    def holds(kind: Any) -> bool:
        return kind is str or (get_origin(kind) is not Literal and any(map(holds, get_args(kind))))

    return {name for name, field in model.model_fields.items() if holds(field.annotation)}


def _marked(model: type[BaseModel]) -> set[str]:
    fields = model.model_fields.items()
    return {
        name for name, field in fields if mark_of(Annotated[field.annotation, *field.metadata, 0])
    }


def test_every_text_of_an_agent_is_filled_or_known_to_be_silent() -> None:
    """A new field is in neither set, so this test fails until it is added to one."""
    assert _texts(AgentConfig) == SPOKEN | UNSPOKEN
    assert _marked(AgentConfig) == SPOKEN
    assert _texts(CustomTool) == {
        *("name", "url", "headers", "parameters"),
        *("description", "execution_message"),
    }
    assert _marked(CustomTool) == {"description", "execution_message"}
    assert _marked(McpServer) == set()


def test_all_of_them_at_once() -> None:
    tool = CustomTool(
        name="find",
        description="Finds {{who}}",
        url="https://example.com/",
        headers={"X-For": "{{who}}"},
        parameters={"type": "object", "properties": {"a": {"description": "{{who}}"}}},
        execution_message="Wait, {{who}}.",
    )
    words: dict[str, Any] = dict.fromkeys(SPOKEN, "Say {{who}}")
    words["silence_prompts"] = ["{{who}}?", "{{nothing}}", "Still there, {{who}}?"]
    config = AgentConfig(name="x", custom_tools=[tool], **words)
    filled = fill(Agent(id="a", version=1, config=config), {"who": "Ann", "nothing": None}).config
    for name in SPOKEN - {"silence_prompts"}:
        assert getattr(filled, name) == "Say Ann", name
    assert filled.silence_prompts == ["Ann?", "Still there, Ann?"]
    (made,) = filled.custom_tools
    assert (made.description, made.execution_message) == ("Finds Ann", "Wait, Ann.")
    assert (made.headers, made.parameters) == (tool.headers, tool.parameters)


@pytest.mark.parametrize("name", sorted(SPOKEN - {"silence_prompts"}))
def test_words_filled_with_nothing_are_not_said(name: str) -> None:
    words: dict[str, Any] = {name: "{{who}}"}
    config = AgentConfig(name="x", **words)
    filled = fill(Agent(id="a", version=1, config=config), {"who": None}).config
    assert not getattr(filled, name)


def test_a_briefing_may_become_the_usual_one() -> None:
    config = AgentConfig(name="x", transfer_briefing="{{who}}")
    agent = AGENT.model_copy(update={"config": config})
    assert fill(agent, {"who": "Ann"}).config.transfer_briefing == "Ann"
    assert fill(agent, {"who": None}).config.transfer_briefing is None


def test_a_value_is_not_looked_through_again() -> None:
    filled = fill(AGENT, {"who": r"{{order}} \1", "order": "secret"})
    assert filled.config.begin_message == r"Hello {{order}} \1!"


def test_without_variables_or_words_nothing_changes() -> None:
    assert fill(AGENT, {}) is AGENT
    silent = AGENT.model_copy(update={"config": AgentConfig(name="x")})
    assert fill(silent, {"who": "Ann"}).config.begin_message is None


def test_what_gets_too_long_is_refused() -> None:
    with pytest.raises(Unprocessable) as caught:
        fill(AGENT, {"who": "x" * 1_995})
    assert [detail.field for detail in caught.value.details] == ["variables"]
