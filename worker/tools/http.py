"""An agent's custom tools: one HTTP request per tool call, whose response goes to the LLM as text.

POST sends the arguments as a JSON body, GET as query parameters. ``X-Call-Id``, ``X-Tool-Name`` and
``Idempotency-Key`` are added to the headers that the tool's owner configured. Redirects are not
followed: requests go to the configured URL only.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDict

from core.models import CustomTool
from core.url_guard import AddressRefused, read_bounded
from worker.privacy.secrets import Secrets

log = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """A tool's result. ``text`` goes to the LLM, even an error, so that it can tell the caller."""

    ok: bool
    text: str


async def request(
    http: aiohttp.ClientSession,
    tool: CustomTool,
    arguments: dict[str, Any],
    *,
    call_id: str,
    key: str,
    secrets: Secrets,
) -> ToolAnswer:
    """Call the tool. Failures of the other side are returned, not raised.

    ``http`` is a guarded session (core.url_guard). Compressed responses are refused. The request
    has the digits that the arguments name; an answer that repeats them is scrubbed. ``key`` is the
    same whenever the same use of the tool is sent again.
    """
    arguments = secrets.reveal(arguments)
    query = _query(arguments) if tool.method == "GET" else None
    try:
        async with http.request(
            tool.method,
            tool.url,
            params=query,
            json=None if tool.method == "GET" else arguments,
            headers=_headers(tool, call_id, key),
            timeout=aiohttp.ClientTimeout(total=tool.timeout_ms / 1000),
            allow_redirects=False,
        ) as response:
            if response.status // 100 != 2:
                return ToolAnswer(False, f"Error: the tool answered with HTTP {response.status}.")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                return ToolAnswer(False, "Error: the tool's answer is compressed.")
            body = await read_bounded(response, MAX_RESPONSE_BYTES + 1)
            if len(body) > MAX_RESPONSE_BYTES:
                return ToolAnswer(False, "Error: the tool's answer is too long.")
            return ToolAnswer(True, secrets.scrub(body.decode(errors="replace")) or "Done.")
    except TimeoutError:
        return ToolAnswer(False, "Error: the tool did not answer in time.")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        refused = isinstance(getattr(error, "os_error", None), AddressRefused)
        problem = "AddressRefused" if refused else type(error).__name__
        log.warning("tool failed", extra={"tool": tool.name, "error": problem})
        return ToolAnswer(False, "Error: the tool could not be reached.")


def _headers(tool: CustomTool, call_id: str, key: str) -> CIMultiDict[str]:
    headers = CIMultiDict(tool.headers)
    ours = {
        "Accept-Encoding": "identity",
        "X-Call-Id": call_id,
        "X-Tool-Name": tool.name,
        "Idempotency-Key": key,
    }
    headers.update(ours)
    return headers


def _query(arguments: dict[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in arguments.items()
        if value is not None
    }
