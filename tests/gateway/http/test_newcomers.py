"""gateway.http.newcomers: the limits, and that nothing stays counted."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from core.errors import TooManyRequests
from gateway.http.newcomers import Newcomers

pytestmark = pytest.mark.unit


def test_one_address_and_all_together() -> None:
    refused: list[None] = []
    newcomers = Newcomers(lambda: refused.append(None), most=3, most_of_one=2)

    def over(address: str | None) -> bool:
        try:
            with newcomers.one(address):
                return False
        except TooManyRequests as error:
            assert error.code == "SOCKET_LIMIT"
            return True

    with ExitStack() as held:
        for address in ("192.0.2.1", "192.0.2.1"):
            held.enter_context(newcomers.one(address))
        assert (over("192.0.2.1"), over("192.0.2.2"), over(None)) == (True, False, False)
        held.enter_context(newcomers.one("192.0.2.2"))
        assert over("192.0.2.3")
        assert len(refused) == 2
    assert not over("192.0.2.1")


def test_an_error_within_frees_the_place() -> None:
    newcomers = Newcomers(lambda: None, most=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="no token"), newcomers.one("192.0.2.1"):
            raise ValueError("no token")
