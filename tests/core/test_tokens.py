"""Tokens between gateway and workers: each has one purpose, all have one key."""

from __future__ import annotations

import base64
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from core.tokens import InvalidToken, TokenIssuer

pytestmark = pytest.mark.unit

SECRET = "a-livekit-secret-of-32-bytes-at-least"
ISSUER = TokenIssuer(SECRET)


def test_each_is_for_its_own_purpose() -> None:
    assert ISSUER.verify(ISSUER.for_call("call_1"), "switchroom:call") == "call_1"
    assert ISSUER.verify(ISSUER.for_worker("w1"), "switchroom:worker") == "w1"
    with pytest.raises(InvalidToken):
        ISSUER.verify(ISSUER.for_call("w1"), "switchroom:worker")
    with pytest.raises(InvalidToken):
        ISSUER.verify(ISSUER.for_worker("call_1"), "switchroom:call")


def test_no_key_has_a_codec_read_from_disk_while_a_token_is_verified() -> None:
    """json takes the key that is derived from this secret for UTF-16."""
    code = (
        "import sys\n"
        "from core.tokens import TokenIssuer\n"
        "before, issuer = set(sys.modules), TokenIssuer('secret-50')\n"
        "issuer.verify(issuer.for_call('call_1'), 'switchroom:call')\n"
        "print(*(name for name in sys.modules.keys() - before if name.startswith('encodings.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_when_a_calls_was_made() -> None:
    age = datetime.now(UTC) - ISSUER.call_token_made(ISSUER.for_call("c"))
    assert timedelta() <= age < timedelta(seconds=10)


def test_two_processes_with_one_secret_agree() -> None:
    assert TokenIssuer(SECRET).verify(ISSUER.for_call("c"), "switchroom:call") == "c"
    with pytest.raises(InvalidToken):
        TokenIssuer(SECRET + "!").verify(ISSUER.for_call("c"), "switchroom:call")


def made(key: Any = None, algorithm: str = "HS256", **changes: Any) -> str:
    claims = {
        "sub": "c",
        "aud": "switchroom:call",
        "exp": datetime.now(UTC) + timedelta(minutes=1),
        **changes,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, ISSUER._key if key is None else key, algorithm)


def _nested() -> str:
    return base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=") + ".e30.AA"


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "\udcff.\udcff.\udcff",
        "é",
        _nested(),
        "A" * 100_000,
        made(SECRET),  # LiveKit's own key signs none of our tokens
        made("", "none"),
        made(exp=datetime.now(UTC) - timedelta(minutes=1)),
        made(exp=None),
        made(sub=None),
        made(aud=None),
        made(aud="switchroom"),
    ],
)
def test_anything_else_is_invalid(token: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        ISSUER.verify(token, "switchroom:call")
    assert caught.value.__cause__ is None
