"""Named secrets of a tenant (a Twilio account, a SIP trunk's login), encrypted at rest.

``SECRETS_KEY`` is one or more Fernet keys, separated by commas: the first encrypts, all decrypt.
To rotate a key, put a new one in front, run ``python -m gateway reseal``, and remove the old one.
Without the setting a key is generated once and stored in ``DATA_DIR/secrets.key``, which suits a
single machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import ConfigDict, Field, SecretStr
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from core.errors import ServerFault
from core.models import CredentialProvider, Model, Timestamp, new_id, now
from core.settings import Settings
from gateway.store.database import Database, Scope, whole
from gateway.store.tables import CredentialRow, PhoneNumberRow


class Credential(Model):
    """A named secret, without the secret."""

    id: str
    name: str
    provider: CredentialProvider
    created_at: Timestamp


class NameTaken(Exception):
    """The tenant has a credential of this name."""


class InUse(Exception):
    """A number uses the credential."""


class Unreadable(Exception):
    """The secret was sealed with a key that is not in SECRETS_KEY."""


class Secret(Model):
    """The secret part of a credential; its passwords show in no representation."""

    # Nor in validation errors.
    model_config = ConfigDict(hide_input_in_errors=True)

    def reveal(self) -> dict[str, Any]:
        """Return JSON-ready values, by alias, with the passwords, for sealing."""
        whole = self.model_dump(by_alias=True)
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in whole.items()
        }


class TwilioSecret(Secret):
    """A Twilio account, and the termination address of its Elastic SIP trunk for outbound calls."""

    account_sid: str
    auth_token: SecretStr
    sip_address: str | None = None
    username: str | None = None
    password: SecretStr | None = None


class SipSecret(Secret):
    """Any SIP trunk."""

    address: str
    username: str | None = None
    password: SecretStr | None = None
    transport: Literal["auto", "udp", "tcp", "tls"] = "auto"
    allowed_addresses: list[str] = Field(default_factory=list)
    country: str | None = None


class Vault:
    """Seals and opens secrets."""

    def __init__(self, keys: Iterable[str]) -> None:
        """``keys`` must be Fernet keys, at least one. Raises ValueError."""
        try:
            fernets = [Fernet(key.strip().encode()) for key in keys if key.strip()]
        except ValueError:
            fernets = []
        if not fernets:
            # The message never quotes the key.
            raise ValueError("SECRETS_KEY must be Fernet keys, separated by commas")
        self._fernet = MultiFernet(fernets)

    @classmethod
    def from_settings(cls, settings: Settings) -> Vault:
        """Create the configured vault. Raises ValueError (SECRETS_KEY), OSError (DATA_DIR)."""
        if settings.secrets_key is not None:
            return cls(settings.secrets_key.get_secret_value().split(","))
        return cls([_own_key(settings.data_dir / "secrets.key")])

    def seal(self, secret: dict[str, Any]) -> str:
        return self._fernet.encrypt(json.dumps(secret).encode()).decode()

    def open(self, sealed: str) -> dict[str, Any]:
        """Decrypt a sealed secret. Raises Unreadable."""
        try:
            secret: dict[str, Any] = json.loads(self._fernet.decrypt(sealed))
        except (InvalidToken, ValueError):
            raise Unreadable from None
        return secret

    def reseal(self, sealed: str) -> str:
        """Re-encrypt a sealed secret with the first key. Raises Unreadable."""
        try:
            return self._fernet.rotate(sealed.encode()).decode()
        except InvalidToken:
            raise Unreadable from None


class CredentialStore:
    """Every method is one transaction. Names are unique per tenant, and never look like an id."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    @whole
    async def create(
        self, scope: Scope, name: str, provider: CredentialProvider, secret: dict[str, Any]
    ) -> Credential:
        """Store a new credential. Raises NameTaken."""
        credential = Credential(id=new_id("cred"), name=name, provider=provider, created_at=now())
        row = {
            "id": credential.id,
            "owner": scope.auth_id or "",
            "name": name,
            "provider": provider,
            "sealed": self._vault.seal(secret),
            "created_at": credential.created_at,
        }
        try:
            async with self._database.write() as connection:
                await connection.execute(insert(CredentialRow).values(**row))
        except IntegrityError:
            raise NameTaken(name) from None
        return credential

    @whole
    async def get(self, scope: Scope, ref: str) -> Credential | None:
        """Find a credential by name or id.

        A name is looked up among the scope's own credentials only, also for the operator.
        """
        row = await self._row(scope, ref)
        return None if row is None else _credential(row)

    @whole
    async def find(self, scope: Scope, ref: str) -> tuple[Credential, dict[str, Any]] | None:
        """Find a credential as ``get`` does, with its secret. Raises Unreadable."""
        row = await self._row(scope, ref)
        return None if row is None else (_credential(row), self._vault.open(row["sealed"]))

    @whole
    async def of_provider(
        self, scope: Scope, provider: CredentialProvider, *, limit: int
    ) -> list[Credential]:
        """Return the scope's own credentials of a provider, oldest first."""
        query = (
            select(CredentialRow.__table__)
            .where(CredentialRow.owner == (scope.auth_id or ""), CredentialRow.provider == provider)
            .order_by(CredentialRow.created_at, CredentialRow.id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [_credential(row) for row in (await connection.execute(query)).mappings()]

    @whole
    async def opened(self, scope: Scope, provider: CredentialProvider) -> list[dict[str, Any]]:
        """Return the secrets of the scope's own credentials of a provider. Raises Unreadable."""
        query = select(CredentialRow.sealed).where(
            CredentialRow.owner == (scope.auth_id or ""), CredentialRow.provider == provider
        )
        async with self._database.read() as connection:
            sealed = (await connection.scalars(query)).all()
        return [self._vault.open(each) for each in sealed]

    @whole
    async def names(self, ids: Collection[str]) -> dict[str, str]:
        """Return names by id, of any tenant, for numbers that the client may see."""
        query = select(CredentialRow.id, CredentialRow.name).where(CredentialRow.id.in_(ids))
        async with self._database.read() as connection:
            return {row.id: row.name for row in await connection.execute(query)}

    @whole
    async def page(self, scope: Scope, *, limit: int, offset: int) -> tuple[list[Credential], int]:
        """Return a page of credentials, newest first, and the total number."""
        query = select(CredentialRow.__table__).where(self._owned(scope))
        newest = (CredentialRow.created_at, CredentialRow.id)
        rows, total = await self._database.page(query, newest=newest, limit=limit, offset=offset)
        return [_credential(row) for row in rows], total

    @whole
    async def delete(self, scope: Scope, ref: str) -> Credential | None:
        """Delete a credential by name or id. None: not found. Raises InUse."""
        async with self._database.write() as connection:
            query = self._named(scope, ref).with_for_update()
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return None
            used = select(PhoneNumberRow.id).where(PhoneNumberRow.credential_id == row["id"])
            if (await connection.execute(used.limit(1))).scalar_one_or_none() is not None:
                raise InUse(row["name"])
            await connection.execute(delete(CredentialRow).where(CredentialRow.id == row["id"]))
            return _credential(row)

    @whole
    async def reseal(self) -> int:
        """Encrypt all secrets with the first key, and return their number.

        Raises Unreadable, and then nothing is changed.
        """
        async with self._database.write() as connection:
            query = select(CredentialRow.id, CredentialRow.sealed)
            rows = (await connection.execute(query)).all()
            for row in rows:
                await connection.execute(
                    update(CredentialRow)
                    .where(CredentialRow.id == row.id)
                    .values(sealed=self._vault.reseal(row.sealed))
                )
        return len(rows)

    async def _row(self, scope: Scope, ref: str) -> Any:
        async with self._database.read() as connection:
            return (await connection.execute(self._named(scope, ref))).mappings().one_or_none()

    def _named(self, scope: Scope, ref: str) -> Any:
        mine = CredentialRow.owner == (scope.auth_id or "")
        by_id = (CredentialRow.id == ref) & self._owned(scope)
        named = (CredentialRow.name == ref) & mine
        return select(CredentialRow.__table__).where(named | by_id).limit(1)

    def _owned(self, scope: Scope) -> Any:
        return scope.owns(CredentialRow.owner)


def _credential(row: Any) -> Credential:
    return Credential.model_validate({name: row[name] for name in Credential.model_fields})


def _own_key(path: Path) -> str:
    """Return the key in the file, created on first use; concurrent starts agree on one key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(Fernet.generate_key())
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    return path.read_text().strip()


def unreadable() -> ServerFault:
    return ServerFault(
        "The credential was encrypted with a key that SECRETS_KEY does not hold",
        code="CREDENTIAL_UNREADABLE",
    )
