"""Without LiveKit's settings only gateway.keys raises LIVEKIT_NOT_CONFIGURED."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiohttp import web

import gateway
from core.errors import ServerFault
from gateway.keys import CALL_SERVICES, call_services

pytestmark = pytest.mark.unit


def test_without_livekit_there_are_no_call_services() -> None:
    app = web.Application()
    app[CALL_SERVICES] = None
    with pytest.raises(ServerFault) as caught:
        call_services(app)
    assert caught.value.code == "LIVEKIT_NOT_CONFIGURED"


def test_one_place_raises_it() -> None:
    package = Path(gateway.__file__).parent
    raising = [
        path.relative_to(package)
        for path in package.rglob("*.py")
        if re.search(r'code="LIVEKIT_NOT_CONFIGURED"', path.read_text())
    ]
    assert raising == [Path("keys.py")]
