"""LOG_REDACT: no number of a call appears in the logs of our processes."""

from __future__ import annotations

import pytest

from dev.phone import Phone
from dev.stack import Stack
from tests.conftest import Gateway
from tests.support.inbound_rig import Line, make_agent
from tests.support.sip_call_rig import body, hang_up

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

CALLER, DIALLED, SHOWN = "+15105557341", "+15105558452", "+15105559563"


async def test_calls_both_ways_leave_no_number_in_any_log(
    stack: Stack, gateway: Gateway, phone: Phone
) -> None:
    """The stack logs at DEBUG. livekit-server's own log is not redacted."""
    line = await Line.attach(stack, gateway, await make_agent(gateway))
    call = await line.dial(phone, caller=CALLER)
    await call.answered(20)
    await call.hangup()
    record = await line.record()
    assert record["fromNumber"] == CALLER
    assert CALLER not in record["roomName"]
    answer = await gateway.post(
        "/sip/call",
        json=body(
            participant_identity=f"sip_{DIALLED}",
            to_phone_number=DIALLED,
            from_phone_number=SHOWN,
            agent="greeter",
            sip={"outbound_address": phone.address},
        ),
    )
    assert answer.status == 200, answer.body
    await hang_up(gateway, answer, phone)
    for name in ("gateway", "worker", "bridge"):
        log = stack.log_text(name)
        for number in (CALLER, DIALLED, SHOWN, line.number):
            found = [text for text in log.splitlines() if number.lstrip("+") in text]
            assert not found, (name, found[:3])
