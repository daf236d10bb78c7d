"""``python -m gateway explain call_…``: the diagnosis of a call in the terminal.

Exit status: 0 if nothing went wrong, 1 if something did (known or not), 2 if there is no such call
or the database cannot be read.
"""

from __future__ import annotations

from core.settings import Settings
from gateway.diagnosis.diagnose import Diagnosis, diagnose
from gateway.store.calls import Store
from gateway.store.database import Database, Scope


async def explain(settings: Settings, call_id: str) -> Diagnosis | None:
    """Return the diagnosis, as the operator sees it; None: no such call.

    Reads the gateway's database beside a running gateway, and changes nothing, not even the schema.
    Raises Unavailable, ValueError.
    """
    database = await Database.open(settings.database_url, upgrade=False)
    try:
        store = Store(database)
        call = await store.call(Scope(None), call_id)
        return None if call is None else diagnose(call, await store.events(call.id))
    finally:
        await database.close()
