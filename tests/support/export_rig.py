"""A gateway that exports recordings, to files and to a real S3-speaking server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.store import S3Store
from sqlalchemy import insert, select

from core.models import new_id
from core.recordings.config import Region
from core.settings import Settings
from gateway.keys import DATABASE, EXPORTER, RECORDINGS
from gateway.recordings.exporter import Exporter
from gateway.store.recordings.tables import ExportRow, RecordingRow
from recordings.store import RecordingStore
from recordings.stores import Stores
from tests.conftest import ACME
from tests.recordings.test_store import put
from tests.support.inprocess import Running, running, settings_in
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

KEY = base64.b64encode(bytes(32)).decode()


def nowhere() -> RecordingStore:
    return RecordingStore(
        S3Store(
            "our-bucket",
            endpoint="http://127.0.0.1:9",
            region="x",
            access_key_id="id",
            secret_access_key="secret",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        )
    )


class Rig:
    """A gateway whose exporter takes steps only when the test says so."""

    def __init__(self, gateway: Running, settings: Settings, server: S3Server) -> None:
        self.gateway = gateway
        self.settings = settings
        self.server = server
        self.bucket = server.bucket(f"export-{new_id('b')[2:]}")
        self.stores = Stores.from_settings(settings)

    @property
    def exporter(self) -> Exporter:
        return self.gateway.app[EXPORTER]

    async def recorded(self, tenant: str = "acme", *, stored: bool = True, **values: Any) -> str:
        """Store a recording of a new call; return its key."""
        call = await self.gateway.call(auth_id=tenant)
        data = f"recording of {call.id}".encode() * 5000
        row = {
            "call_id": call.id,
            "auth_id": tenant,
            "region": None,
            "key": f"t-{tenant}/2026/01/31/{call.id}.wav",
            "format": "wav",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "duration_ms": 1000,
            "encrypted": True,
            "stored_at": self.gateway.clock() - timedelta(minutes=1),
            **values,
        }
        if stored:
            await put(self.stores.of(None), row["key"], data)
        async with self.gateway.app[DATABASE].write() as connection:
            await connection.execute(insert(RecordingRow).values(**row))
        return str(row["key"])

    def away(self, region: Region | None) -> None:
        """From now on the exporter cannot reach the region's store."""
        opened = self.gateway.app[RECORDINGS].stores._opened
        opened[region] = nowhere()

    def back(self, region: Region) -> None:
        """The region has a store again: the default one."""
        stores = self.gateway.app[RECORDINGS].stores
        stores._opened[region] = stores.of(None)

    async def asked(self, *, headers: Any = ACME, **body: Any) -> tuple[int, Any]:
        async with self.gateway.http.post(
            "/v1/recordings/export", json=body, headers=headers
        ) as response:
            return response.status, await response.json()

    async def progress(self, job_id: str, headers: Any = ACME) -> Any:
        path = f"/v1/recordings/export/{job_id}"
        async with self.gateway.http.get(path, headers=headers) as response:
            return await response.json()

    def own(self, **changes: Any) -> dict[str, Any]:
        """Return a tenant's own bucket."""
        return {
            "url": f"s3://{self.bucket}/mine",
            "accessKeyId": ACCESS_KEY,
            "secretAccessKey": SECRET_KEY,
            "endpoint": self.server.endpoint,
            **changes,
        }

    def files(self, below: str) -> set[str]:
        root = self.server.folder / self.bucket / below
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    async def sealed(self, job_id: str) -> str | None:
        async with self.gateway.app[DATABASE].read() as connection:
            query = select(ExportRow.sealed).where(ExportRow.id == job_id)
            return (await connection.execute(query)).scalar_one()


@asynccontextmanager
async def rig_in(folder: Path, server: S3Server, **changes: Any) -> AsyncIterator[Rig]:
    bucket = server.bucket("exports")
    settings = settings_in(
        folder,
        recordings_key=KEY,
        recordings_export_urls=(f"s3://{bucket}/ours", f"file://{folder}/exports"),
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        aws_endpoint_url=server.endpoint,
        **{"webhook_allow_private": True, **changes},
    )
    async with running(settings) as gateway:
        yield Rig(gateway, settings, server)
