"""Makes the brain of a call's agent: the tenant's webhook, or a model with its tools."""

from __future__ import annotations

from collections.abc import Callable

from openai import AsyncClient

from core.jobs import CallBrief
from worker.brains.hosted import HostedBrain
from worker.brains.webhook import WebhookBrain
from worker.tools.box import ToolBox
from worker.voice.brain import Brain


def brain_of(
    brief: CallBrief,
    box: ToolBox,
    *,
    llm_client: AsyncClient,
    allow_private: bool,
    on_busy: Callable[[bool], None],
) -> Brain:
    """Return the brain. ``on_busy`` is called when a webhook begins to answer, and when it ends."""
    config = brief.agent.config
    if config.voice_mode == "webhook":
        return WebhookBrain(
            brief, actions=box.actions, post=box.post, on_busy=on_busy, allow_private=allow_private
        )
    return HostedBrain(config, llm_client, box, allow_private=allow_private, so_far=brief.recovered)
