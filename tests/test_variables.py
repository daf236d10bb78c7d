from __future__ import annotations

import pytest

from core.errors import Unprocessable
from core.models import Agent, AgentConfig
from core.variables import fill

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
