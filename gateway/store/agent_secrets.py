"""The secrets in an agent's configuration: the headers of its tools and of its MCP servers.

Wherever a configuration is stored (an agent's rows, the calls that pin it, the cache, responses
stored for idempotency keys), ``sealedHeaders`` replaces ``headers``:

    {"customTools": [{"name": "look_up", …, "sealedHeaders": "gAAAA…"}], …}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.errors import ServerFault
from core.models import Agent
from core.tools.headers import MAX_HEADERS
from gateway.fields.url_login import split_login
from gateway.store.credentials import Unreadable, Vault

MARK = "sealedHeaders"
"""Occurs in the text of every stored configuration that holds a secret."""
_PLAIN = "headers"
_HOLDERS = ("customTools", "mcpServers")


class AgentSecrets:
    """Seals and opens JSON-ready configurations, by alias; it never modifies its arguments."""

    def __init__(self, vault: Vault | None) -> None:
        """Without a vault no secret can be stored."""
        self._vault = vault

    def seal(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return ``config`` with its secrets sealed. Raises ValueError: secrets, but no vault."""

        def sealed(holder: dict[str, Any]) -> dict[str, Any]:
            if not holder.get(_PLAIN):
                return holder
            token = self._the_vault().seal(holder[_PLAIN])
            return {**_without(holder, _PLAIN), MARK: token}

        return _each(config, sealed)

    def open(self, config: dict[str, Any]) -> dict[str, Any]:
        """Undo ``seal``. Raises Unreadable, ValueError (no vault).

        A login in a URL, which is refused today, is converted to the header that it stands for. It
        is sealed with the other headers when the configuration is stored again.
        """

        def opened(holder: dict[str, Any]) -> dict[str, Any]:
            if MARK in holder:
                headers = self._the_vault().open(holder[MARK])
                holder = {**_without(holder, MARK), _PLAIN: headers}
            return _without_login(holder)

        return _each(config, opened)

    def pin(self, agent: Agent) -> dict[str, Any]:
        """Return the agent as it is stored with a call. Raises ValueError, as ``seal`` does."""
        whole = agent.wire()
        return {**whole, "config": self.seal(whole["config"])}

    def unpin(self, kept: dict[str, Any]) -> Agent:
        """Undo ``pin``. Raises ServerFault ``CREDENTIAL_UNREADABLE``."""
        try:
            return Agent.model_validate({**kept, "config": self.open(kept["config"])})
        except Unreadable:
            raise unreadable() from None

    def reseal(self, config: dict[str, Any]) -> dict[str, Any]:
        """Encrypt the secrets with the first key. Raises Unreadable, ValueError."""

        def resealed(holder: dict[str, Any]) -> dict[str, Any]:
            if MARK not in holder:
                return holder
            return {**holder, MARK: self._the_vault().reseal(holder[MARK])}

        return _each(config, resealed)

    def _the_vault(self) -> Vault:
        if self._vault is None:
            raise ValueError("headers cannot be kept without a vault")
        return self._vault


def without_secrets(config: dict[str, Any]) -> dict[str, Any]:
    """Return a sealed configuration without its secrets, which can be read without a key."""
    return _each(config, lambda holder: {**_without_login(_without(holder, MARK)), _PLAIN: {}})


def unreadable() -> ServerFault:
    return ServerFault(
        "The agent's headers were encrypted with a key that SECRETS_KEY does not hold",
        code="CREDENTIAL_UNREADABLE",
    )


def _each(
    config: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    changed = {name: [*map(change, config[name])] for name in _HOLDERS if config.get(name)}
    return {**config, **changed}


def _without_login(holder: dict[str, Any]) -> dict[str, Any]:
    url, login = split_login(holder["url"])
    if login is None:
        return holder
    headers = holder.get(_PLAIN) or {}
    named = {name.lower() for name in headers}
    if "authorization" not in named and len(headers) < MAX_HEADERS:
        headers = {**headers, "Authorization": login}
    return {**holder, "url": url, _PLAIN: headers}


def _without(holder: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in holder.items() if key != name}
