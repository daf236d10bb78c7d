"""The bridge's limits on inbound calls: their number and rate, turns to join, and refusals."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sip import membership, room_leg
from sip.bridge.calls.inbound_limits import SOURCES_KEPT, Admission, Limits
from sip.bridge.calls.refuser import Refuser
from sip.bridge.calls.turns import Turns
from sip.bridge.twirp import TwirpError
from sip.endings import PHONE_HUNG_UP, SHUTDOWN, Ending
from sip.participant import LiveKit, Participant
from sip.room_leg import RoomLeg

pytestmark = [pytest.mark.unit, pytest.mark.attack]

LIMITS = Limits(unanswered=6, unanswered_of_trunk=3, per_second_of_source=2, burst_of_source=4)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestAdmission:
    def test_so_many_are_unanswered_and_no_more(self) -> None:
        admission = Admission(LIMITS)
        tickets = [admission.ticket() for _ in range(10)]
        assert [ticket is not None for ticket in tickets] == [True] * 6 + [False] * 4
        first = tickets[0]
        assert first is not None
        first.give_back()
        first.give_back()
        assert admission.ticket() is not None and admission.ticket() is None

    def test_a_flood_of_one_trunk_leaves_room_for_the_others(self) -> None:
        admission = Admission(LIMITS)
        flood = [admission.ticket() for _ in range(5)]
        entered = [ticket is not None and ticket.enter_trunk("flooded") for ticket in flood]
        assert entered == [True] * 3 + [False] * 2
        for ticket in flood[3:]:
            assert ticket is not None
            ticket.give_back()
        other = admission.ticket()
        assert other is not None and other.enter_trunk("other")

    def test_an_answered_call_makes_room_on_its_trunk(self) -> None:
        admission = Admission(LIMITS)
        for _ in range(20):
            ticket = admission.ticket()
            assert ticket is not None and ticket.enter_trunk("trunk")
            ticket.give_back()
        assert admission.unanswered == 0

    @pytest.mark.parametrize(("per_second", "lasts_s"), [(1, 60), (2, 60), (50, 10), (1000, 3)])
    def test_a_source_gets_its_burst_and_its_rate(self, per_second: int, lasts_s: int) -> None:
        clock = Clock()
        admission = Admission(LIMITS, clock)
        let_in = 0
        for _ in range(per_second * lasts_s):
            let_in += not admission.slower("192.0.2.1")
            clock.now += 1 / per_second
        asked, allowed = per_second * lasts_s, 4 + 2 * lasts_s
        assert let_in in range(min(asked, allowed) - 1, min(asked, allowed) + 1)

    def test_one_source_does_not_slow_another(self) -> None:
        admission = Admission(LIMITS, Clock())
        assert [admission.slower("192.0.2.1") for _ in range(6)] == [False] * 4 + [True] * 2
        assert not admission.slower("192.0.2.2")

    def test_forged_sources_take_no_memory(self) -> None:
        admission = Admission(LIMITS, Clock())
        for number in range(3 * SOURCES_KEPT):
            admission.slower(f"source-{number}")
        assert len(admission._sources) == SOURCES_KEPT


class Joining:
    """A leg that joins when the test lets it."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.let = asyncio.Event()
        self.over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    async def join(self, _deadline: float) -> None:
        self.began.set()
        await self.let.wait()


def as_leg(joining: Joining) -> RoomLeg:
    return cast(RoomLeg, joining)


class TestTurns:
    async def test_a_few_at_a_time(self) -> None:
        line = Turns(2, 10)
        calls = [Joining() for _ in range(3)]
        tasks = [asyncio.create_task(line.join(as_leg(call))) for call in calls]
        await calls[1].began.wait()
        assert not calls[2].began.is_set()
        calls[0].let.set()
        await asyncio.wait_for(calls[2].began.wait(), 1)
        for call in calls:
            call.let.set()
        await asyncio.gather(*tasks)

    async def test_whoever_waits_too_long_is_refused_and_joins_nothing(self) -> None:
        line, first, late = Turns(1, 10, join_within_s=0.05), Joining(), Joining()
        holding = asyncio.create_task(line.join(as_leg(first)))
        await first.began.wait()
        with pytest.raises(TwirpError) as refused:
            await asyncio.wait_for(line.join(as_leg(late)), 5)
        assert refused.value.code == "resource_exhausted"
        assert not late.began.is_set()
        first.let.set()
        await holding
        late.let.set()
        await line.join(as_leg(late))  # its turn was not lost

    async def test_more_than_may_wait_are_refused(self) -> None:
        line, first = Turns(1, 1), Joining()
        line.check()
        holding = asyncio.create_task(line.join(as_leg(first)))
        await first.began.wait()
        with pytest.raises(TwirpError, match="too many calls") as refused:
            line.check()
        assert refused.value.code == "resource_exhausted"
        first.let.set()
        await holding
        line.check()

    @pytest.mark.parametrize("ending", [PHONE_HUNG_UP, SHUTDOWN])
    async def test_a_call_that_is_over_leaves_the_line(self, ending: Ending) -> None:
        line, first, second = Turns(1, 2), Joining(), Joining()
        holding = asyncio.create_task(line.join(as_leg(first)))
        await first.began.wait()
        waiting = asyncio.create_task(line.join(as_leg(second)))
        await asyncio.sleep(0)
        with pytest.raises(TwirpError, match="too many calls"):
            line.check()
        second.over.set_result(ending)
        with pytest.raises(TwirpError, match=ending.cause) as refused:
            await asyncio.wait_for(waiting, 1)
        assert refused.value.code == "canceled"
        line.check()
        assert not first.let.is_set() and not second.began.is_set()
        first.let.set()
        await holding

    @pytest.mark.parametrize("how", ["over", "cancelled"])
    @pytest.mark.parametrize("moment", range(8))
    async def test_a_turn_that_comes_with_the_end_is_passed_on(self, moment: int, how: str) -> None:
        line, first, second, third = Turns(1, 10), Joining(), Joining(), Joining()
        holding = asyncio.create_task(line.join(as_leg(first)))
        await first.began.wait()
        waiting = asyncio.create_task(line.join(as_leg(second)))
        await asyncio.sleep(0)
        for joining in (first, second, third):
            joining.let.set()
        for _ in range(moment):
            await asyncio.sleep(0)
        if how == "cancelled":
            waiting.cancel()
        else:
            second.over.set_result(PHONE_HUNG_UP)
        await asyncio.wait({holding, waiting}, timeout=1)
        await asyncio.wait_for(line.join(as_leg(third)), 1)
        assert line._turns._value == 1, "as many turns as before"


@pytest.mark.parametrize(("came", "code"), [(True, "canceled"), (False, "unavailable")])
async def test_a_join_that_cannot_succeed_gives_its_turn_back(
    came: bool, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK misses a removal while it connects."""

    async def connect(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async def absent(*_: object) -> bool:
        return came

    monkeypatch.setattr(room_leg, "connect", connect)
    monkeypatch.setattr(membership, "absent", absent)
    livekit = LiveKit("ws://127.0.0.1:1", "key", "a-secret-of-more-than-32-bytes-for-tests")
    line = Turns(1, 10)
    for number in range(3):
        phone = Participant("room", "phone", "Phone", "", {})
        leg = RoomLeg(f"SCL_{number}", phone, livekit, look_after_s=0)
        async with asyncio.timeout(2):
            with pytest.raises(TwirpError) as refused:
                await line.join(leg)
            await leg.leave(leg.over.result())
        assert refused.value.code == code


class TestRefuser:
    async def test_one_after_the_other_and_one_line_for_all(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        at_once = most = refused = 0

        async def hang_up() -> None:
            nonlocal at_once, most, refused
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1
            refused += 1

        refuser = Refuser()
        phone: Any = SimpleNamespace(hang_up=hang_up)
        for _ in range(500):
            refuser.refuse(phone, "too many")
        await refuser.close()
        assert (most, refused) == (1, 500)
        told = [(record.__dict__["why"], record.__dict__["calls"]) for record in caplog.records]
        assert told == [("too many", 500)]

    async def test_one_that_cannot_be_refused_does_not_keep_the_others_waiting(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        refused = asyncio.Event()

        async def fail() -> None:
            raise RuntimeError("an odd call")

        async def hang_up() -> None:
            refused.set()

        line = Refuser()
        odd: Any = SimpleNamespace(hang_up=fail)
        good: Any = SimpleNamespace(hang_up=hang_up)
        for phone in (odd, good, odd):
            line.refuse(phone, "too many")
        await line.close()
        assert refused.is_set()
        failed = [record for record in caplog.records if record.exc_info]
        assert [record.getMessage() for record in failed] == [
            "refusing an incoming call failed"
        ] * 2

    async def test_a_stack_that_hangs_does_not_hold_up_the_stop(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        line = Refuser(close_within_s=0.01)
        phone: Any = SimpleNamespace(hang_up=asyncio.Event().wait)
        for _ in range(3):
            line.refuse(phone, "too many")
        await asyncio.wait_for(line.close(), 2)
        (late,) = [record for record in caplog.records if "in time" in record.getMessage()]
        assert late.__dict__["calls"] == 3
