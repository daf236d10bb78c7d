"""The names of recordings in their stores."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from core.recordings.plan import object_key

pytestmark = pytest.mark.unit

_AT = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("tenant", "folder"),
    [
        (None, "_"),
        ("acme", "t-acme"),
        ("_", "t-_"),
        ("a/../b", "t-a~2f~2e~2e~2fb"),
        ("a~2fb", "t-a~7e2fb"),
        ("Ünï", "t-~c3~9cn~c3~af"),
    ],
)
def test_tenants_have_folders_of_their_own(tenant: str | None, folder: str) -> None:
    assert object_key("call_1", tenant, _AT, "wav") == f"{folder}/2026/01/31/call_1.wav"
