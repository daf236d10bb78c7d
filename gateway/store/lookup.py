"""What a call looks up: its agent, and the number it came in by; kept in gateway.store.cache.

An agent is made through the API, or is a YAML file. A file's name is its agent's id; file agents
are everybody's. A change counts for the next call; calls under way keep what they began with,
because the gateway pins the configuration into the call's record.

Who changes an agent or a number does it by its store, which makes the cache forget; ``warm``
afterwards spares the next call the way to the database.
"""

from __future__ import annotations

import asyncio
import logging
import re
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import yaml
from pydantic import ValidationError

from core import compliance, tool_schema
from core.errors import Conflict, ServerFault, Unavailable
from core.models import Agent, AgentConfig, AgentRecord, PhoneNumber
from gateway.store.agents import ID_PREFIX as AGENT_PREFIX
from gateway.store.agents import AgentStore, agent_not_found
from gateway.store.cache import Cache, agent_key, number_key
from gateway.store.database import Scope
from gateway.store.numbers import NumberStore
from gateway.store.webhooks import WebhookStore

log = logging.getLogger(__name__)

# What fits the record's column and is a file name everywhere.
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class BadAgentFile(ValueError):
    """Names the file and what is wrong in it, never what it holds."""


class Agents:
    """Looks agents up for calls."""

    def __init__(self, files: AgentFiles, store: AgentStore, cache: Cache) -> None:
        self._files = files
        self._records = _Kept(cache, agent_key, store.dump, store.parse, store.get)

    async def get(self, scope: Scope, agent_id: str) -> Agent | None:
        """The agent as it is now, if the scope may use it.

        Raises Unavailable (no database), ServerFault ``CREDENTIAL_UNREADABLE``.
        """
        # What a file is called, the database never made.
        if agent_id.startswith(AGENT_PREFIX):
            record = await self._records.get(scope, agent_id)
            if record is not None:
                return record.agent
        return await asyncio.to_thread(self._files.get, agent_id)

    async def require(self, scope: Scope, agent_id: str) -> Agent:
        """As ``get``; raises NotFound ``AGENT_NOT_FOUND`` as well."""
        agent = await self.get(scope, agent_id)
        if agent is None:
            raise agent_not_found()
        return agent

    async def warm(self, agent_id: str) -> None:
        """Keep the agent ready for its next call; after it was made, changed or rolled back."""
        await self._records.warm(agent_id)


class Numbers:
    """Looks phone numbers up by id, with the agent each is bound to."""

    def __init__(self, store: NumberStore, cache: Cache) -> None:
        self._records = _Kept(
            cache,
            number_key,
            PhoneNumber.model_dump_json,
            PhoneNumber.model_validate_json,
            store.get,
        )

    async def get(self, scope: Scope, number_id: str) -> PhoneNumber | None:
        """The number as it is now, if it is the scope's. Raises Unavailable (no database)."""
        return await self._records.get(scope, number_id)

    async def warm(self, number_id: str) -> None:
        """Keep the number ready for its next call; after it was attached, bound or changed."""
        await self._records.warm(number_id)


_Record = TypeVar("_Record", bound=AgentRecord | PhoneNumber)


class _Kept(Generic[_Record]):
    """Records of one kind by id, through the cache; the scope is checked on what came out."""

    def __init__(
        self,
        cache: Cache,
        key: Callable[[str], str],
        dump: Callable[[_Record], str],
        parse: Callable[[str], _Record],
        load: Callable[[Scope, str], Awaitable[_Record | None]],
    ) -> None:
        self._cache = cache
        self._key = key
        self._dump = dump
        self._parse = parse
        self._load = load

    async def get(self, scope: Scope, record_id: str) -> _Record | None:
        # An id comes from a caller: what cannot be one must not become a key.
        if not _ID.fullmatch(record_id):
            return None

        async def load() -> str | None:
            loaded = await self._load(Scope(None), record_id)
            return None if loaded is None else self._dump(loaded)

        key = self._key(record_id)
        text = await self._cache.read(key, load)
        if text is None:
            return None
        try:
            record = self._parse(text)
        except ValueError:
            # Kept by another release of this software, or with a key that is no more.
            await self._cache.forget(key)
            return await self._load(scope, record_id)
        return record if scope.auth_id in (None, record.auth_id) else None

    async def warm(self, record_id: str) -> None:
        try:
            await self.get(Scope(None), record_id)
        except (Unavailable, ServerFault):
            # The next call asks again.
            log.warning("could not warm the cache", extra={"record_id": record_id})


async def check_takes_calls(agent: Agent, auth_id: str | None, webhooks: WebhookStore) -> None:
    """Raises Conflict for an agent that cannot hold a call of ``auth_id``'s, saying why."""
    if not agent.config.enabled:
        raise Conflict("The agent is disabled", code="AGENT_DISABLED")
    if agent.config.voice_mode == "webhook" and not await webhooks.has(auth_id or "", agent.id):
        raise Conflict(
            "No webhook is set for the agent or its project; set one, or voiceMode to hosted",
            code="WEBHOOK_NOT_CONFIGURED",
        )


@dataclass(frozen=True, slots=True)
class _Loaded:
    stamp: tuple[int, int, int]
    agent: Agent


class AgentFiles:
    """The agents of one directory (``*.yaml``), read again when a file changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._loaded: dict[str, _Loaded] = {}

    def check(self) -> list[str]:
        """Read every file; the ids found. Raises BadAgentFile."""
        # Hidden files are the droppings of editors and of mounted volumes.
        names = (path.stem for path in self._directory.glob("*.yaml"))
        ids = sorted(name for name in names if not name.startswith("."))
        for agent_id in ids:
            if not _ID.fullmatch(agent_id):
                raise BadAgentFile(
                    f"{agent_id}.yaml: an agent's id is 1 to 64 letters, digits, - and _"
                )
            self._load(agent_id)
        return ids

    def get(self, agent_id: str) -> Agent | None:
        """The agent as its file says now. A file broken since keeps its last good content."""
        try:
            return self._load(agent_id)
        except BadAgentFile as error:
            kept = self._loaded.get(agent_id)
            log.error("agent file is broken", extra={"agent_id": agent_id, "problem": str(error)})
            return kept.agent if kept else None

    def _load(self, agent_id: str) -> Agent | None:
        # An id comes from a caller: it must name a file here, not a path elsewhere.
        if not _ID.fullmatch(agent_id):
            return None
        path = self._directory / f"{agent_id}.yaml"
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._loaded.pop(agent_id, None)
            return None
        except OSError as error:
            raise BadAgentFile(f"{path.name}: {type(error).__name__}") from None
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        kept = self._loaded.get(agent_id)
        if kept is None or kept.stamp != stamp:
            kept = _Loaded(stamp, _read(path, agent_id))
            self._loaded[agent_id] = kept
        return kept.agent


def _read(path: Path, agent_id: str) -> Agent:
    try:
        raw = path.read_bytes()
        given = yaml.safe_load(raw)
        asked = compliance.faults(given)
        config = AgentConfig.model_validate(compliance.served(given))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_input=False)
        )
        raise BadAgentFile(f"{path.name}: {faults}") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        # PyYAML makes dates of what looks like one, and fails on the 30th of February.
        raise BadAgentFile(f"{path.name}: {type(error).__name__}") from None
    if asked:
        faults = "; ".join(f"{fault.field}: {fault.message}" for fault in asked)
        raise BadAgentFile(f"{path.name}: {faults}")
    for index, tool in enumerate(config.custom_tools):
        try:
            tool_schema.check_parameters(tool.parameters)
        except ValueError as error:
            place = f"customTools.{index}.parameters"
            raise BadAgentFile(f"{path.name}: {place}: {error}") from None
    # A file has no version number of its own; its content's checksum pins it.
    return Agent(id=agent_id, version=zlib.crc32(raw) & 0x7FFFFFFF, config=config)
