"""``python -m gateway reseal``: encrypt all secrets anew, with the first key of SECRETS_KEY."""

from __future__ import annotations

from core.agent_reseal import reseal_agents
from core.call_trunks import reseal_call_trunks
from core.credentials import CredentialStore, Unreadable, Vault
from core.database import Database
from core.settings import Settings
from core.webhook_store import WebhookStore


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
