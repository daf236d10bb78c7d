"""Agents that are files: ``AGENTS_DIR/<id>.yaml``, checked as the API checks its agents."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from core.models import Agent, AgentConfig
from core.settings import Settings
from core.tools import schema as tool_schema
from gateway.fields.agent_recording import faults_of
from gateway.lookup.kept import ID

log = logging.getLogger(__name__)


class BadAgentFile(ValueError):
    """The text names the file and the error in it, but never quotes its content."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    stamp: tuple[int, int, int]
    agent: Agent


class AgentFiles:
    """The agents of AGENTS_DIR (``*.yaml``), read again when a file changes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = settings.agents_dir
        self._loaded: dict[str, _Loaded] = {}

    def check(self) -> list[str]:
        """Read every file, and return the ids found. Raises BadAgentFile."""
        # Editors and mounted volumes leave hidden files behind.
        names = (path.stem for path in self._directory.glob("*.yaml"))
        ids = sorted(name for name in names if not name.startswith("."))
        for agent_id in ids:
            if not ID.fullmatch(agent_id):
                raise BadAgentFile(
                    f"{agent_id}.yaml: an agent's id is 1 to 64 letters, digits, - and _"
                )
            self._load(agent_id)
        return ids

    def get(self, agent_id: str) -> Agent | None:
        """Return the agent in its file's current state, or its last valid one if now invalid."""
        try:
            return self._load(agent_id)
        except BadAgentFile as error:
            kept = self._loaded.get(agent_id)
            log.error("agent file is broken", extra={"agent_id": agent_id, "problem": str(error)})
            return kept.agent if kept else None

    def _load(self, agent_id: str) -> Agent | None:
        # Ids come from clients: an id must name a file in this directory, not a path elsewhere.
        if not ID.fullmatch(agent_id):
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
            kept = _Loaded(stamp, _read(path, agent_id, self._settings))
            self._loaded[agent_id] = kept
        return kept.agent


def _read(path: Path, agent_id: str, settings: Settings) -> Agent:
    try:
        raw = path.read_bytes()
        given = yaml.safe_load(raw)
        config = AgentConfig.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_input=False)
        )
        raise BadAgentFile(f"{path.name}: {faults}") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        # PyYAML parses text that looks like a date, and raises ValueError for 30 February.
        raise BadAgentFile(f"{path.name}: {type(error).__name__}") from None
    if found := faults_of(config, settings):
        faults = "; ".join(f"{fault.field}: {fault.message}" for fault in found)
        raise BadAgentFile(f"{path.name}: {faults}")
    for index, tool in enumerate(config.custom_tools):
        try:
            tool_schema.check_parameters(tool.parameters)
        except ValueError as error:
            place = f"customTools.{index}.parameters"
            raise BadAgentFile(f"{path.name}: {place}: {error}") from None
    # A file has no version number, so the checksum of its content serves as one.
    return Agent(id=agent_id, version=zlib.crc32(raw) & 0x7FFFFFFF, config=config)
