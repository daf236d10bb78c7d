"""The tools that run in a call: an id for each, and none that runs twice because an agent was lost.

What an earlier agent did is known from the gateway (core.recovery.Recovered). The model now answers
the turn that was being answered when that agent was lost, so it may well call the same tools again.
Until it has said something about them and the caller has replied, ``instead`` returns what it gets
in place of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from livekit.agents import StopResponse

from core.jobs import CallBrief
from core.models import new_id
from core.recovery import Recovered
from core.tools.memory import SECRET_DIGITS
from worker.link.reporter import Reporter
from worker.privacy.gate import Gate
from worker.privacy.secrets import Secrets
from worker.tools.http import ToolAnswer
from worker.tools.memory import Memory
from worker.voice.earlier.tools import DONE, UNKNOWN

_DIGITS_LOST = "Error: the secret digits are lost. Ask the caller to type them again."

# What fits a header, and is short enough to be kept. Some providers number the calls of a reply.
_ID = re.compile(r"[A-Za-z0-9._-]{6,100}")


@dataclass(slots=True)
class Run:
    """A tool that runs. ``key`` is what its server gets to recognise a repetition."""

    id: str
    key: str
    ok: bool = False
    result: str | None = None
    """None: the outcome is not known."""

    def done(self, text: str) -> str:
        self.ok, self.result = True, text
        return text

    def failed(self, text: str) -> str:
        self.ok, self.result = False, text
        return text

    def answered(self, answer: ToolAnswer) -> str:
        return self.done(answer.text) if answer.ok else self.failed(answer.text)


class Runs:
    """Without ``memory`` no later agent knows what ran. ``replied`` returns True once the caller
    has replied to an answer of this agent."""

    def __init__(
        self,
        call_id: str,
        secrets: Secrets,
        memory: Memory | None = None,
        *,
        earlier: Recovered | None = None,
        replied: Callable[[], bool] = lambda: False,
    ) -> None:
        self.call_id = call_id
        self._secrets = secrets
        self._memory = memory
        self._replied = replied
        self._of_last_turn = earlier.tools_of_last_turn if earlier else []
        self._unknown = [run for run in earlier.tools if run.answered is None] if earlier else []
        self._used = {run.called.id for run in earlier.tools} if earlier else set()
        self._digits_lost = earlier is not None

    async def begin(self, name: str, arguments: dict[str, Any], call_id: str) -> Run:
        """Begin a run; ``call_id`` is the model's. Raises StopResponse if it must not run."""
        id = self._id(name, arguments, call_id)
        self._used.add(id)
        if self._memory is not None and not await self._memory.called(
            id, name, arguments, self._secrets
        ):
            raise StopResponse
        return Run(id, f"{self.call_id}:{id}")

    def end(self, run: Run) -> None:
        """Note the outcome of a run, if it is known."""
        if self._memory is not None and run.result is not None:
            self._memory.answered(run.id, run.ok, run.result, self._secrets)

    def instead(self, name: str, arguments: dict[str, Any]) -> str | None:
        """Return what the model gets in place of a tool that must not run now; None: run it."""
        if self._digits_lost and SECRET_DIGITS in json.dumps(arguments, ensure_ascii=False):
            return _DIGITS_LOST
        if self._replied():
            return None
        ran = [run for run in self._of_last_turn if run.called.name == name]
        if any(run.answered is None for run in ran):
            return UNKNOWN
        for run in reversed(ran):
            if run.called.arguments is None:
                return DONE
            if run.answered is not None and run.called.arguments == self._kept(arguments):
                return DONE if run.answered.result is None else run.answered.result
        return None

    def _id(self, name: str, arguments: dict[str, Any], call_id: str) -> str:
        for run in self._unknown:
            # Of arguments without their personal data it is not known whether they are the same.
            if run.called.name == name and run.called.arguments == arguments:
                if self._kept(arguments) != arguments:
                    continue
                self._unknown.remove(run)
                return run.called.id
        usable = _ID.fullmatch(call_id) is not None and call_id not in self._used
        return call_id if usable else new_id("tool")

    def _kept(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        return None if self._memory is None else self._memory.kept(arguments, self._secrets)


class Said(Protocol):
    """The part of worker.voice.transcript that tells where the conversation is."""

    @property
    def turn_id(self) -> str | None:
        """The caller's last turn; None: they have said nothing yet."""

    @property
    def replied(self) -> bool:
        """The caller has said something after an answer of this agent."""


def runs_of(
    brief: CallBrief,
    secrets: Secrets,
    *,
    gate: Gate,
    reporter: Reporter,
    now_ms: Callable[[], int],
    said: Callable[[], Said | None],
) -> Runs:
    """Return the runs of a call's tools. ``now_ms`` is the call's clock."""

    def turn_id() -> str | None:
        return None if (so_far := said()) is None else so_far.turn_id

    def replied() -> bool:
        return (so_far := said()) is not None and so_far.replied

    memory = Memory(gate, post=reporter.post, secured=reporter.secured, turn=turn_id, now_ms=now_ms)
    return Runs(
        brief.call_id,
        secrets,
        memory if brief.remembers else None,
        earlier=brief.recovered,
        replied=replied,
    )
