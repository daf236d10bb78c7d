"""``python -m dev stack``: run the whole system until Ctrl-C, and print how to use it."""

from __future__ import annotations

import contextlib
import json

from rich.console import Console

from core.settings import Settings
from dev.stack.checklist import Checklist
from dev.stack.options import StackOptions
from dev.stack.stack import Stack

EXAMPLE_CALL = {
    "room_name": "hello",
    "participant_name": "Phone",
    "participant_identity": "phone-1",
    "from_phone_number": "+15105550100",
    "to_phone_number": "+15105550123",
}


async def run(settings: Settings, *, keep: bool = False) -> int:
    """Run the stack until cancelled; return 1 when a component ends by itself."""
    console = Console()
    checklist = Checklist(console)
    options = StackOptions(settings=settings, streams=1, keep=keep, report=checklist)
    async with contextlib.AsyncExitStack() as cleanup:
        # Entered before the stack, so that it also shows the stop.
        cleanup.enter_context(checklist)
        stack = await cleanup.enter_async_context(Stack(options))
        checklist.pause()
        console.print(describe(stack), highlight=False, markup=False, soft_wrap=True)
        ended = await stack.wait_unexpected_end()
        tail = "\n  ".join(stack.log_text(ended.name).splitlines()[-20:])
        console.print(
            f"\n{ended.name} ended by itself with exit code {ended.process.returncode}; "
            f"its log ends:\n  {tail}\n",
            highlight=False,
            markup=False,
        )
    return 1


def describe(stack: Stack) -> str:
    """Return the text with the addresses, the keys and an example call."""
    settings = stack.settings
    secret = settings.livekit_api_secret
    lines = [
        "",
        f"gateway     {stack.gateway_url}  (API: {stack.gateway_url}/docs)",
        f"  an agent  {stack.gateway_url}/try/{settings.default_agent}  (?via=socket: no LiveKit)",
        f"LiveKit     {settings.livekit_url}",
        f"  key       {settings.livekit_api_key}",
        f"  secret    {secret.get_secret_value() if secret else ''}",
        f"SIP API     {stack.bridge_url}",
        f"SIP         sip:NUMBER@{stack.sip_address}",
        f"logs, data  {stack.run_dir}",
        "",
        "Call a SIP phone (replace 127.0.0.1:5070 with its address):",
        "",
        *_example_call(stack),
        "",
        "Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)


def _example_call(stack: Stack) -> list[str]:
    body: dict[str, object] = dict(EXAMPLE_CALL)
    if not stack.settings.sip_outbound_address:
        body["sip"] = {"outbound_address": "127.0.0.1:5070"}
    token = ["    -H 'Authorization: Bearer <token>' \\"] if stack.settings.auth_required else []
    return [
        f"  curl {stack.gateway_url}/sip/call -H 'Content-Type: application/json' \\",
        *token,
        f"    -d '{json.dumps(body)}'",
    ]
