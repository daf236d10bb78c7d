"""The worker's part of transfers, with a gateway that answers as each test needs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from core.jobs import CallBrief
from core.models import Agent, AgentConfig
from core.recovery import OpenTransfer
from core.transfers import Outcome, TransferOrder, TransferResult
from worker.handover.transfer import Transfers
from worker.line import TransferFailed
from worker.link.client import Refused, Unavailable
from worker.tools.actions import ActionFailed

pytestmark = pytest.mark.unit

Ask = Callable[[TransferOrder], Awaitable[TransferResult]]


class Human:
    """A consultation whose human takes the call if the gateway says that they have answered."""

    def __init__(self, on_connected: Callable[[], None]) -> None:
        self.present = True
        self.closed = False
        self._on_connected = on_connected

    async def hold(self, ring: Callable[[], Awaitable[TransferResult]]) -> None:
        if (result := await ring()).outcome != "answered":
            raise TransferFailed(result.outcome)
        self._on_connected()

    def close(self) -> None:
        self.closed = True


class Line:
    """A line that refers its far end, with a call's transfers and a record of their effects."""

    def __init__(self, ask: Ask, *, ask_longer_s: float = 20.0, mode: Any = "cold") -> None:
        config = AgentConfig(
            name="Ann",
            transfer_number="+15551230077",
            transfer_mode=mode,
            transfer_ringing_ms=1000,
        )
        brief = CallBrief(
            call_id="call_1",
            direction="inbound",
            participant_identity="caller",
            from_number="+15550101",
            to_number="+15550202",
            metadata={},
            max_duration_ms=60_000,
            agent=Agent(id="a", version=1, config=config),
        )
        self.held: list[bool] = []
        self.over: list[str] = []
        self.posted: list[tuple[str, Any, str | None]] = []
        self.human: Human | None = None
        self.dismissed: list[str] = []
        self.transfers = Transfers(
            brief,
            line=cast(Any, self),
            ask=ask,
            post=self._post,
            delivered=self._delivered,
            on_hold=self.held.append,
            on_over=lambda cause, _: self.over.append(cause),
            ask_longer_s=ask_longer_s,
        )

    async def refer(self, ask: Callable[[], Awaitable[TransferResult]]) -> TransferResult:
        return await ask()

    def consult(self, *_: Any, **told: Any) -> Human:
        self.human = Human(told["on_connected"])
        return self.human

    async def dismiss(self, transfer_id: str) -> None:
        self.dismissed.append(transfer_id)

    async def _delivered(self) -> None: ...

    def _post(self, type: str, data: Any = None, *, id: str | None = None) -> None:
        self.posted.append((type, data, id))


def answering(outcome: Outcome) -> Ask:
    async def ask(_: TransferOrder) -> TransferResult:
        return TransferResult(outcome=outcome)

    return ask


async def test_the_call_is_over_for_us() -> None:
    line = Line(answering("transferred"))
    await line.transfers.transfer()
    assert (line.over, line.held, line.posted) == (["referred"], [True], [])


async def test_the_caller_is_back() -> None:
    line = Line(answering("busy"))
    for _ in range(2):
        with pytest.raises(ActionFailed, match="the line is busy"):
            await line.transfers.transfer()
    assert (line.over, line.held) == ([], [True, False] * 2)
    assert [(type, data) for type, data, _ in line.posted] == [
        ("transfer.failed", {"reason": "busy"})
    ] * 2
    first, second = (id for _, _, id in line.posted)
    assert first != second


async def test_it_is_the_same_transfer_when_the_gateway_must_be_asked_again() -> None:
    asked: list[str] = []

    async def ask(order: TransferOrder) -> TransferResult:
        asked.append(order.transfer_id)
        if len(asked) == 1:
            raise Unavailable("HTTP 503")
        return TransferResult(outcome="no_answer")

    line = Line(ask)
    with pytest.raises(ActionFailed, match="nobody picked up"):
        await line.transfers.transfer()
    assert len(asked) == 2 and len(set(asked)) == 1


@pytest.mark.parametrize("error", [Refused("HTTP 409", 409), Unavailable("no route")])
async def test_a_gateway_that_does_not_help(error: Exception) -> None:
    async def ask(_: TransferOrder) -> TransferResult:
        raise error

    line = Line(ask, ask_longer_s=0)
    with pytest.raises(ActionFailed):
        await asyncio.wait_for(line.transfers.transfer(), 10)
    assert line.held == [True, False]
    assert [data for _, data, _ in line.posted] == [{"reason": "failed"}]


@pytest.mark.parametrize(
    ("outcome", "cause"), [("transferred", "referred"), ("failed", "caller_hung_up")]
)
async def test_a_caller_who_leaves_meanwhile_went_there_or_hung_up(
    outcome: Outcome, cause: str
) -> None:
    decided = asyncio.Event()

    async def ask(_: TransferOrder) -> TransferResult:
        await decided.wait()
        return TransferResult(outcome=outcome)

    line = Line(ask)
    transferring = asyncio.create_task(line.transfers.transfer())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert line.transfers.under_way
    line.transfers.caller_left("caller_hung_up", "CLIENT_INITIATED")
    assert line.over == []
    decided.set()
    await asyncio.gather(transferring, return_exceptions=True)
    assert line.over == [cause]


async def test_one_at_a_time_and_none_is_left() -> None:
    async def ask(_: TransferOrder) -> TransferResult:
        return await asyncio.Future()

    line = Line(ask)
    transferring = asyncio.create_task(line.transfers.transfer())
    await asyncio.sleep(0)
    with pytest.raises(ActionFailed, match="already in progress"):
        await line.transfers.transfer()
    await asyncio.sleep(0)
    await line.transfers.aclose()
    with pytest.raises(ActionFailed, match="the call is over"):
        await transferring
    assert [data for _, data, _ in line.posted] == [{"reason": "call_over"}]
    assert not line.transfers.under_way


async def test_who_asked_may_be_cancelled() -> None:
    decided = asyncio.Event()

    async def ask(_: TransferOrder) -> TransferResult:
        await decided.wait()
        return TransferResult(outcome="transferred")

    line = Line(ask)
    tool = asyncio.create_task(line.transfers.transfer())
    await asyncio.sleep(0)
    tool.cancel()
    with pytest.raises(asyncio.CancelledError):
        await tool
    decided.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert line.over == ["referred"]


async def test_a_human_who_does_not_take_the_call_is_not_watched_any_more() -> None:
    line = Line(answering("busy"), mode="warm")
    with pytest.raises(ActionFailed, match="the line is busy"):
        await line.transfers.transfer()
    assert line.human is not None and line.human.closed


async def test_a_human_who_takes_the_call_is_watched_until_the_end() -> None:
    line = Line(answering("answered"), mode="warm")
    await line.transfers.transfer()
    await line.transfers.aclose()
    assert line.human is not None and not line.human.closed
    assert line.over == ["handed_over"]
    line.transfers.close()
    assert line.human.closed


TRF = f"trf_{'0' * 24}"


async def test_a_former_agents_referral_is_waited_for() -> None:
    asked: list[str] = []

    async def ask(order: TransferOrder) -> TransferResult:
        asked.append(order.transfer_id)
        return TransferResult(outcome="transferred")

    line = Line(ask)
    await line.transfers.take_over(OpenTransfer(transfer_id=TRF, mode="cold"))
    assert (asked, line.over, line.dismissed) == ([TRF], ["referred"], [])


async def test_a_former_agents_consultation_ends() -> None:
    line = Line(answering("answered"), mode="warm")
    with pytest.raises(ActionFailed, match="technical fault"):
        await line.transfers.take_over(OpenTransfer(transfer_id=TRF, mode="warm"))
    await asyncio.sleep(0)
    assert (line.dismissed, line.over, line.held) == ([TRF], [], [])
    assert line.posted == [("transfer.failed", {"reason": "agent_lost"}, f"{TRF}_transfer.failed")]
    await line.transfers.transfer()
    assert line.over == ["handed_over"], "the next one is carried out"
