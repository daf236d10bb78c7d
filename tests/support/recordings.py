"""Calls with stored recordings, as a worker leaves them: the object, and its event."""

from __future__ import annotations

import hashlib
import io
import json
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from core.models import Agent, AgentConfig, CallEvent
from core.recordings.config import Recording
from core.recordings.plan import object_key
from core.tokens import TokenIssuer
from gateway.store.call_status import Call
from tests.conftest import ACME, bearer
from tests.support.inprocess import SECRET, Running

RATE = 16_000


def tone(seconds: float, hertz: float = 440, level: float = 0.5) -> NDArray[np.int16]:
    times = np.arange(int(seconds * RATE)) / RATE
    return (level * 32767 * np.sin(2 * np.pi * hertz * times)).astype(np.int16)


def wav(caller: NDArray[np.int16], agent: NDArray[np.int16]) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.stack([caller, agent], axis=1).tobytes())
    return written.getvalue()


# The caller is heard in the first second, the agent in the second.
_SILENT = np.zeros(RATE, np.int16)
AUDIO = wav(np.concatenate([tone(1), _SILENT]), np.concatenate([_SILENT, tone(1, 880, 0.25)]))


@dataclass(frozen=True)
class Recorded:
    gateway: Running
    call: Call
    key: str
    audio: bytes

    @property
    def path(self) -> str:
        return f"/v1/calls/{self.call.id}/recording"

    @property
    def stored(self) -> dict[str, Any]:
        """The data of the worker's event."""
        return {
            "key": self.key,
            "format": "wav",
            "bytes": len(self.audio),
            "sha256": hashlib.sha256(self.audio).hexdigest(),
            "durationMs": (len(self.audio) - 44) // 64,
            "encrypted": False,
        }

    def file(self, folder: Path) -> Path:
        """Return where the object is, with a store of files in ``folder``."""
        return folder / "recordings" / self.key

    async def put(self, folder: Path) -> None:
        path = self.file(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.audio)

    async def report(self, **changes: Any) -> tuple[int, Any]:
        """Tell the gateway, as the call's worker, that the recording is stored."""
        event = CallEvent(
            id=f"{self.call.id}_stored", type="recording.stored", data={**self.stored, **changes}
        )
        return await self.tell(event)

    async def tell(self, *events: CallEvent) -> tuple[int, Any]:
        path = f"/internal/calls/{self.call.id}/events"
        body = {"events": [event.wire() for event in events]}
        token = bearer(TokenIssuer(SECRET).for_call(self.call.id))
        async with self.gateway.http.post(path, headers=token, json=body) as response:
            return response.status, await response.json()

    async def get(self, rest: str = "", headers: dict[str, str] | None = None) -> Answer:
        return await ask(self.gateway, "GET", self.path + rest, {**ACME, **(headers or {})})

    async def delete(self) -> Answer:
        return await ask(self.gateway, "DELETE", self.path, ACME)

    async def shown(self, headers: dict[str, str] = ACME) -> dict[str, Any]:
        answer = await ask(self.gateway, "GET", f"/v1/calls/{self.call.id}", headers)
        shown: dict[str, Any] = answer.json()
        return shown

    async def events(self, type: str) -> list[dict[str, Any]]:
        return [event.data for event in await self.gateway.store.events(self.call.id, types=[type])]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


async def ask(
    gateway: Running, method: str, path: str, headers: dict[str, str] | None = None
) -> Answer:
    async with gateway.http.request(
        method, path, headers=headers, timeout=aiohttp.ClientTimeout(total=20)
    ) as response:
        return Answer(response.status, response.headers, await response.read())


async def recorded_call(gateway: Running, audio: bytes = AUDIO, **recording: Any) -> Recorded:
    """Store a call of acme that asks to be recorded; its recording is not stored yet."""
    config = AgentConfig(name="Greeter", recording=Recording(enabled=True, **recording))
    agent = Agent(id="greeter", version=1, config=config)
    call = await gateway.call(agent=agent, record=True)
    return Recorded(gateway, call, object_key(call.id, "acme", call.created_at, "wav"), audio)


async def stored_call(gateway: Running, folder: Path, **recording: Any) -> Recorded:
    """Store a call of acme, with its recording."""
    recorded = await recorded_call(gateway, **recording)
    await recorded.put(folder)
    status, body = await recorded.report()
    assert status == 200, body
    return recorded


async def end(recorded: Recorded) -> None:
    ended = CallEvent(type="call.ended", data={"status": "completed", "reason": "agent_hangup"})
    await recorded.gateway.store.append(recorded.call.id, [ended], "gateway")
