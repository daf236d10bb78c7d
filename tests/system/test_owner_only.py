"""File modes on a running system: other users can read no file of a call."""

from __future__ import annotations

import pytest

from dev.phone import Phone
from dev.stack import Stack
from tests.conftest import Gateway
from tests.core.test_owner_only import open_to_others
from tests.support.calls import Placed, request

pytestmark = [pytest.mark.stack, pytest.mark.attack, pytest.mark.asyncio(loop_scope="session")]


async def test_nothing_of_a_call_is_readable_by_others(
    stack: Stack, gateway: Gateway, phone: Phone
) -> None:
    data = stack.settings.data_dir
    placed = await Placed.place(gateway, request(phone.address))
    call = await phone.next_call(10)
    await call.answered(10)
    await call.listen(30)
    # The worker, in a job process, keeps the call's events until the gateway has them.
    assert (data / "spool" / "worker").is_dir()
    assert open_to_others(data) == []
    await call.hangup()
    await placed.record()
    assert (data / "switchroom.db").is_file()
    assert open_to_others(data) == []
