"""``python -m gateway reseal``: encrypt all credentials with the first key of SECRETS_KEY."""

from __future__ import annotations

from core.credentials import CredentialStore, Unreadable, Vault
from core.database import Database
from core.settings import Settings


async def reseal(settings: Settings) -> int:
    """How many there are. Raises ValueError when one cannot be read; then none is changed."""
    vault = Vault.from_settings(settings)
    database = await Database.open(settings.database_url)
    try:
        return await CredentialStore(database, vault).reseal()
    except Unreadable:
        raise ValueError(
            "SECRETS_KEY holds no key for some credential; nothing was changed"
        ) from None
    finally:
        await database.close()
