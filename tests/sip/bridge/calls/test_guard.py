"""The bridge's own check of a tenant's dial, and of the next hop that the far end names."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from livekit.protocol import sip as pb

from core.models import new_id
from sip.bridge.calls import outbound
from sip.bridge.calls.outbound import checked_uri, plan
from sip.bridge.stack.endpoint import Endpoint
from sip.bridge.stack.trace import DialogTrace, SipMessage
from sip.endings import REMOVED
from sip.guard import (
    LOOKUPS_PER_TENANT,
    TENANT_DIAL,
    AddressRefused,
    Listener,
    Lookups,
    SipGuard,
)
from tests.sip.test_guard import PUBLIC, PUBLIC6, Names
from tests.sip.test_guard_lookups import answer

pytestmark = [pytest.mark.unit, pytest.mark.attack]


def order(hostname: str, *, tenant: str | None = "mark", **fields: Any) -> outbound.Dial:
    request = pb.CreateSIPParticipantRequest(
        trunk=pb.SIPOutboundConfig(hostname=hostname, **fields),
        sip_number="100",
        sip_call_to="200",
        room_name=new_id("room"),
        participant_attributes={"a": "b", **({} if tenant is None else {TENANT_DIAL: tenant})},
    )
    return plan(request, None, "127.0.0.1")


class TestUri:
    @pytest.mark.parametrize(
        ("hostname", "host", "uri"),
        [
            (
                "trunk.example:5060",
                "192.0.2.7",
                f"sip:200@trunk.example:5060;transport=udp;maddr={PUBLIC}",
            ),
            (
                "trunk.example:5060",
                "2001:db8::7",
                f"sip:200@trunk.example:5060;transport=udp;maddr={PUBLIC6}",
            ),
            (f"{PUBLIC}:5080", "192.0.2.7", f"sip:200@{PUBLIC}:5080;transport=udp"),
            (f"[{PUBLIC6}]:5060", "::", f"sip:200@[{PUBLIC6}]:5060;transport=udp"),
        ],
    )
    async def test_it_leads_to_the_address_that_was_checked(
        self, hostname: str, host: str, uri: str
    ) -> None:
        names = Names(trunk_example=[[PUBLIC6, PUBLIC]])
        assert await checked_uri(order(hostname), SipGuard(resolve=names), host) == uri

    async def test_the_operators_is_not_looked_at(self) -> None:
        names = Names()
        free = order("trunk.example", tenant=None)
        uri = await checked_uri(free, SipGuard(resolve=names), "127.0.0.1")
        assert (uri, names.asked) == ("sip:200@trunk.example;transport=udp", [])

    def test_the_mark_does_not_enter_the_room(self) -> None:
        marked = order("trunk.example")
        assert marked.tenant == "mark"
        assert TENANT_DIAL not in marked.participant.attributes
        assert marked.participant.attributes["a"] == "b"

    @pytest.mark.parametrize(
        "hostname",
        [
            "127.0.0.1:22",
            "127.1",
            "2130706433",
            "0177.0.0.1",
            "0x7f.1",
            "0x7f000001:80",
            "[::1]:5060",
            "[::ffff:10.0.0.1]:5060",
            "localhost:5060",
            "169.254.169.254:80",
            "private.example:5060",
            "gone.example:5060",
            "ours.example:5060",
        ],
    )
    async def test_refused_here_too(self, hostname: str) -> None:
        names = Names(private_example=[["10.0.0.1"]], ours_example=[[PUBLIC]])
        guard = SipGuard(resolve=names, own=[Listener(PUBLIC, 5060)])
        with pytest.raises(AddressRefused):
            await checked_uri(order(hostname), guard, "127.0.0.1")


class Phone:
    """A far end that answers at once."""

    call_id = "1"

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.answered = asyncio.Event()
        self.answered.set()
        self.closed: asyncio.Future[str] = loop.create_future()


class Stack:
    """A SIP stack that notes the URIs dialled; the far end answers with the given headers."""

    host = "192.0.2.7"

    def __init__(self, *headers: tuple[str, str]) -> None:
        self.dialled: list[str] = []
        message = SipMessage(True, "203.0.113.1:5060", "SIP/2.0 200 OK", headers)
        self._dialog = DialogTrace(message)

    async def dial(self, _identity: Any, uri: str, _headers: Any) -> Any:
        self.dialled.append(uri)
        self.phone = Phone()
        return self.phone

    def seen(self, _call_id: Any) -> DialogTrace:
        return self._dialog

    async def dialog(self, _call_id: Any) -> DialogTrace:
        return self._dialog


def ringing_out() -> Any:
    """Return a call that has joined its room."""
    return SimpleNamespace(
        participant=SimpleNamespace(attributes={}),
        adopt=lambda _phone: None,
        room_leg=SimpleNamespace(subscribe=lambda: None, set_attributes=lambda _attributes: None),
        over=asyncio.get_running_loop().create_future(),
    )


async def dial(
    hostname: str,
    guard: SipGuard,
    stack: Stack,
    *,
    tenant: str | None = "mark",
    call: Any = None,
    **fields: Any,
) -> str | None:
    """Dial; return the error's code, or None if the far end answered."""
    endpoint: Any = stack
    verdict = await outbound.dial(
        call or ringing_out(), order(hostname, tenant=tenant, **fields), endpoint, guard
    )
    return None if verdict is None else verdict.error.code


class TestDial:
    async def test_a_name_that_leads_elsewhere_the_second_time(self) -> None:
        """The name is public when the gateway resolves it, and private when the bridge does."""
        names = Names(rebind_example=[[PUBLIC], ["127.0.0.1"]])
        guard = SipGuard(resolve=names)
        assert await guard.check("rebind.example:5060", tenant="acme") == [PUBLIC]
        stack = Stack()
        assert await dial("rebind.example:5060", guard, stack) == "permission_denied"
        assert stack.dialled == []

    async def test_a_name_that_would_lead_elsewhere_the_third_time(self) -> None:
        """The stack gets the checked address, so it does not resolve the name."""
        names = Names(rebind_example=[[PUBLIC], ["127.0.0.1"]])
        stack = Stack(("contact", "<sip:200@8.8.4.4>"))
        assert await dial("rebind.example:5060", SipGuard(resolve=names), stack) is None
        assert stack.dialled == [f"sip:200@rebind.example:5060;transport=udp;maddr={PUBLIC}"]

    @pytest.mark.parametrize(
        "headers",
        [
            [("contact", "<sip:200@10.0.0.1:5060>")],
            [("contact", "<sip:200@[::1]>")],
            [("contact", "sip:127.0.0.1")],
            [("contact", "<sips:200@localhost;transport=tls>")],
            [("contact", "<sip:200@8.8.8.8;maddr=10.0.0.1>")],
            [("contact", "<sip:200@private.example:5060>")],
            [("contact", "<sip:200@gone.example>")],
            [("contact", "<sip:200@ours.example>")],
            [("contact", "<sip:200@8.8.8.8>"), ("record-route", "<sip:10.0.0.1;lr>")],
            # A careless parser reads another address here than the stack does.
            [("contact", '"<sip:q@8.8.8.8>" <sip:b@10.0.0.1>')],
            [("contact", '"sip:q@8.8.8.8 " <sip:b@10.0.0.1>')],
            [("contact", "sip:q@8.8.8.8 <sip:b@10.0.0.1>")],
            [("contact", "sip:q@10.0.0.1 <sip:b@8.8.8.8>")],
            [("contact", '"a\\" <sip:q@8.8.8.8>" <sip:b@10.0.0.1>')],
            [("contact", '"<sip:q@8.8.8.8> <sip:b@10.0.0.1>')],
            [("contact", "<sip:b@8.8.8.8> <sip:10.0.0.1")],
            [("record-route", '<sip:10.0.0.1;lr>;x="sip:8.8.8.8;"')],
            [("record-route", "<sip:10.0.0.1;lr>;x=sip:8.8.8.8")],
            [("record-route", "<sip:8.8.8.8;lr>, <sip:10.0.0.1;lr>")],
            [("contact", "<tel:+15105550199>")],
            [("contact", "")],
            [],
            [("record-route", "<sip:8.8.8.8;lr>,<sip:127.0.0.1:22;lr>")],
            [("record-route", "<sip:8.8.8.8;lr>"), ("record-route", "<sip:a@[fd00::1];lr>")],
            [("record-route", "<sip:8.8.8.8;lr;maddr=169.254.169.254>")],
        ],
    )
    async def test_a_far_end_that_leads_the_call_inside(self, headers: Any) -> None:
        names = Names(private_example=[["10.0.0.1"]], ours_example=[[PUBLIC]])
        guard = SipGuard(resolve=names, own=[Listener(PUBLIC, 5060)])
        assert await dial("8.8.8.8:5060", guard, Stack(*headers)) == "permission_denied"
        assert await dial("8.8.8.8:5060", guard, Stack(*headers), tenant=None) is None

    @pytest.mark.parametrize(
        "headers",
        [
            [("contact", "<sip:200@8.8.4.4:5080>")],
            # A switch behind its edge: we send nothing to its Contact.
            [("contact", "<sip:200@172.25.1.1>"), ("record-route", "<sip:8.8.8.8;lr>")],
            [("contact", '"Doe, <John>" <sip:200@8.8.4.4>')],
            [
                ("contact", "<sip:a@172.25.1.1>"),
                ("record-route", "<sip:10.1.1.1;lr>,<sip:8.8.8.8;lr>"),
            ],
            [("record-route", "<sip:10.0.0.1;lr>, <sip:8.8.8.8;lr>")],
        ],
    )
    async def test_a_far_end_that_stays_outside(self, headers: Any) -> None:
        assert await dial("8.8.8.8:5060", SipGuard(), Stack(*headers)) is None

    @pytest.mark.parametrize("contact", [PUBLIC, f"{PUBLIC}:5061", f"{PUBLIC}:5061;transport=tls"])
    async def test_a_far_end_that_leads_the_call_to_our_tls_port(self, contact: str) -> None:
        guard = SipGuard(own=[Listener(PUBLIC, 5061, tls_only=True)])
        stack = Stack(("contact", f"<sip:200@{contact}>"))
        for transport in (pb.SIP_TRANSPORT_UDP, pb.SIP_TRANSPORT_TLS):
            assert await dial("8.8.8.8", guard, stack, transport=transport) == "permission_denied"

    @pytest.mark.parametrize("mark", ["mark", "true", ""])
    async def test_the_lookups_are_its_tenants(self, mark: str) -> None:
        """Lookups before and after the answer, in any room, count as the tenant's, not as ours."""
        names = Names(trunk_example=[[PUBLIC]], far_example=[[PUBLIC]])
        stack = Stack(("contact", "<sip:200@far.example>"))
        for _ in range(2):
            assert await dial("trunk.example", SipGuard(resolve=names), stack, tenant=mark) is None
        assert names.asked == [("trunk.example", mark), ("far.example", mark)] * 2

    async def test_far_ends_that_never_resolve_hold_up_their_tenant_only(self) -> None:
        stuck = threading.Event()
        held = itertools.count(1)
        full = asyncio.Event()
        loop = asyncio.get_running_loop()

        def system(name: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
            if name.startswith("slow"):
                if next(held) == LOOKUPS_PER_TENANT:
                    loop.call_soon_threadsafe(full.set)
                stuck.wait(10)
            return answer(PUBLIC6 if name == "ours.example" else PUBLIC)

        resolve = Lookups(system).resolve
        guard = SipGuard(own=[Listener("ours.example", 5060)], resolve=resolve)
        slow = [Stack(("contact", f"<sip:x@slow{n}.example>")) for n in range(LOOKUPS_PER_TENANT)]
        stalled = [asyncio.ensure_future(dial("8.8.8.8", guard, each)) for each in slow]
        far = Stack(("contact", "<sip:x@far.example>"))
        inside = Stack(("contact", f"<sip:x@[{PUBLIC6}]>"))
        try:
            async with asyncio.timeout(10):
                await full.wait()
            assert await dial("8.8.8.8", guard, far) == "permission_denied"
            assert await dial("8.8.8.8", guard, far, tenant="rival") is None
            assert await dial("8.8.8.8", guard, inside, tenant="rival") == "permission_denied"
        finally:
            stuck.set()
            await asyncio.gather(*stalled)


class Silent:
    """A resolver that never answers; or, with ``late``, one that calls it and answers."""

    def __init__(self, *, late: Callable[[], None] | None = None) -> None:
        self.asked = asyncio.Event()
        self.given_up = asyncio.Event()
        self._late = late

    async def __call__(self, _name: str, _tenant: str | None) -> Sequence[str]:
        self.asked.set()
        if self._late is not None:
            self._late()
            return [PUBLIC]
        try:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        finally:
            self.given_up.set()


class TestEndedDuringTheCheck:
    async def test_before_the_invite(self) -> None:
        call, stack, names = ringing_out(), Stack(), Silent()
        task = asyncio.ensure_future(
            dial("slow.example:5060", SipGuard(resolve=names), stack, call=call)
        )
        async with asyncio.timeout(5):
            await names.asked.wait()
            call.over.set_result(REMOVED)
            assert await task == "canceled"
            await names.given_up.wait()
        assert stack.dialled == []

    async def test_in_the_very_moment_of_the_answer(self) -> None:
        call, stack = ringing_out(), Stack()
        names = Silent(late=lambda: call.over.set_result(REMOVED))
        code = await dial("slow.example:5060", SipGuard(resolve=names), stack, call=call)
        assert (code, stack.dialled) == ("canceled", [])

    @pytest.mark.parametrize("by", ["us", "the phone"])
    async def test_after_the_answer(self, by: str) -> None:
        call, names = ringing_out(), Silent()
        stack = Stack(("contact", "<sip:x@slow.example>"))
        task = asyncio.ensure_future(
            dial("8.8.8.8:5060", SipGuard(resolve=names), stack, call=call)
        )
        async with asyncio.timeout(5):
            await names.asked.wait()
            if by == "us":
                call.over.set_result(REMOVED)
            else:
                stack.phone.closed.set_result("")
            assert await task == ("canceled" if by == "us" else None)
            await names.given_up.wait()

    async def test_after_the_answer_while_the_answer_is_looked_for(self) -> None:
        call, stack = ringing_out(), Stack()
        asked = asyncio.Event()

        async def dialog(_call_id: Any) -> DialogTrace:
            asked.set()
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        stack.dialog = dialog  # type: ignore[method-assign]
        task = asyncio.ensure_future(dial("8.8.8.8:5060", SipGuard(), stack, call=call))
        async with asyncio.timeout(5):
            await asked.wait()
            call.over.set_result(REMOVED)
            assert await task == "canceled"

    async def test_nothing_is_left_of_a_wait_that_was_given_up(self) -> None:
        endpoint = Endpoint("127.0.0.1:5060")
        task = asyncio.ensure_future(endpoint.dialog("1"))
        await asyncio.sleep(0)
        assert [*endpoint._waiting] == ["1"]
        task.cancel()
        await asyncio.wait({task})
        assert not endpoint._waiting
