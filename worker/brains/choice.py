"""Makes the brain of a call's agent: the tenant's webhook, or a model with its tools."""

from __future__ import annotations

from collections.abc import Callable

from openai import AsyncClient

from core.jobs import CallBrief
from core.url_guard import OpenSession
from worker.brains.hosted import HostedBrain
from worker.brains.webhook import WebhookBrain
from worker.tools.box import ToolBox
from worker.voice.brain import Brain


def brain_of(
    brief: CallBrief,
    box: ToolBox,
    *,
    llm_client: AsyncClient,
    open_http: OpenSession,
    on_busy: Callable[[bool], None],
) -> Brain:
    """Return the brain. ``on_busy`` is called when a webhook begins to answer, and when it ends."""
    config = brief.agent.config
    if config.voice_mode == "webhook":
        return WebhookBrain(
            brief, actions=box.actions, post=box.post, on_busy=on_busy, open_http=open_http
        )
    return HostedBrain(config, llm_client, box, open_http=open_http, so_far=brief.recovered)
