"""``python -m gateway reseal``: encrypt all secrets anew, with the first key of SECRETS_KEY."""

from __future__ import annotations

from core.settings import Settings
from gateway.store.agent_reseal import reseal_agents
from gateway.store.call_trunks import reseal_call_trunks
from gateway.store.credentials import CredentialStore, Unreadable, Vault
from gateway.store.database import Database
from gateway.store.webhooks import WebhookStore


async def reseal(settings: Settings) -> int:
    """How many there are. Raises ValueError when one cannot be read; it is left as it was."""
    vault = Vault.from_settings(settings)
    database = await Database.open(settings.database_url)
    try:
        credentials = await CredentialStore(database, vault).reseal()
        webhooks = await WebhookStore(database, vault).reseal()
        trunks = await reseal_call_trunks(database, vault)
        return credentials + webhooks + trunks + await reseal_agents(database, vault)
    except Unreadable:
        raise ValueError(
            "SECRETS_KEY holds no key for some secret; with that key too, try again"
        ) from None
    finally:
        await database.close()
