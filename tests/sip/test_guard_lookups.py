"""sip.guard resolves names: their addresses, the gateway's own names, unknown transports."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from sip.guard import (
    LOOKUPS_PER_TENANT,
    AddressRefused,
    Listener,
    Lookups,
    NoAnswer,
    SipGuard,
)
from tests.sip.test_guard import PUBLIC, PUBLIC6, Names, passes

pytestmark = [pytest.mark.unit, pytest.mark.attack]


def answer(*addresses: str) -> list[tuple[Any, ...]]:
    return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (each, 0)) for each in addresses]


async def asked(lookups: Lookups, name: str, tenant: str | None) -> list[str] | None:
    """Return the addresses; None if there was no answer."""
    try:
        return await lookups.resolve(name, tenant)
    except NoAnswer:
        return None


class TestLookups:
    async def test_each_address_once(self) -> None:
        lookups = Lookups(lambda *_, **__: answer(PUBLIC, PUBLIC, "10.0.0.1"))
        assert await lookups.resolve("trunk.example", "acme") == [PUBLIC, "10.0.0.1"]

    @pytest.mark.parametrize(
        ("error", "known"),
        [
            (socket.gaierror(socket.EAI_NONAME, "x"), True),
            (socket.gaierror(socket.EAI_NODATA, "x"), True),
            (UnicodeError(), True),
            (socket.gaierror(socket.EAI_AGAIN, "x"), False),
            (socket.gaierror(socket.EAI_FAIL, "x"), False),
            (OSError(), False),
        ],
    )
    async def test_no_such_name_is_an_answer(self, error: Exception, known: bool) -> None:
        def fail(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
            raise error

        assert await asked(Lookups(fail), "trunk.example", "acme") == ([] if known else None)

    async def test_a_machine_without_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def start(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        lookups = Lookups(lambda *_, **__: answer(PUBLIC))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            for n in range(LOOKUPS_PER_TENANT):
                assert await asked(lookups, f"{n}.example", "acme") is None
        assert await lookups.resolve("0.example", "acme") == [PUBLIC]

    async def test_a_slow_name_server_holds_up_its_tenant_only(self) -> None:
        answered = threading.Event()
        heard: list[str] = []

        def slow(name: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
            heard.append(name)
            if name.startswith("slow"):
                answered.wait(10)
            return answer(PUBLIC)

        lookups = Lookups(slow, deadline_s=0.5)
        try:
            slow_names = [f"slow{n}.example" for n in range(LOOKUPS_PER_TENANT + 5)]
            found = await asyncio.gather(*(asked(lookups, name, "acme") for name in slow_names))
            assert found == [None] * len(slow_names)
            assert len(heard) == LOOKUPS_PER_TENANT
            assert await asked(lookups, "trunk.example", "acme") is None
            assert await lookups.resolve("trunk.example", "rival") == [PUBLIC]
        finally:
            answered.set()
        async with asyncio.timeout(10):
            while not await asked(lookups, "trunk.example", "acme"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def test_many_calls_to_one_trunk_ask_once(self) -> None:
        heard: list[str] = []
        go = threading.Event()

        def slow(name: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
            heard.append(name)
            go.wait(10)
            return answer(PUBLIC)

        lookups = Lookups(slow)
        calls = [asyncio.ensure_future(lookups.resolve("t.example", "acme")) for _ in range(50)]
        await asyncio.sleep(0)
        calls[0].cancel()
        go.set()
        assert await asyncio.gather(*calls[1:]) == [[PUBLIC]] * 49
        assert heard == ["t.example"]
        assert await lookups.resolve("t.example", "acme") == [PUBLIC]
        assert len(heard) == 2

    async def test_our_own_names_have_room_beyond_any_tenants_share(self) -> None:
        """All lookups run at once: each waits for the last of them."""
        ours = [f"{n}.ours.example" for n in range(LOOKUPS_PER_TENANT + 1)]
        together = threading.Barrier(len(ours))

        def slow(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
            together.wait(5)
            return answer(PUBLIC)

        lookups = Lookups(slow)
        found = await asyncio.gather(*(asked(lookups, name, None) for name in ours))
        assert found == [[PUBLIC]] * len(ours)


class Moody(Names):
    """A resolver that stops answering while ``silent``."""

    silent = False

    async def __call__(self, name: str, tenant: str | None) -> Sequence[str]:
        found = await super().__call__(name, tenant)
        if self.silent:
            raise NoAnswer
        return found


class TestOwnNames:
    """The addresses of own listeners that the settings give by name."""

    OWN = (Listener("sip.ours.example", 5060), Listener("rtc.ours.example", 5060))

    @pytest.fixture
    def names(self) -> Moody:
        return Moody(sip_ours_example=[[PUBLIC]], rtc_ours_example=[[PUBLIC6]])

    @pytest.fixture
    def checked(self, names: Moody) -> SipGuard:
        return SipGuard(own=self.OWN, resolve=names)

    @pytest.mark.parametrize("address", [PUBLIC, f"[{PUBLIC6}]", "8.8.8.8"])
    async def test_nothing_passes_while_nobody_knows(
        self, names: Moody, checked: SipGuard, address: str
    ) -> None:
        names.silent = True
        with pytest.raises(AddressRefused):
            await checked.check(address, tenant="acme")
        names.silent = False
        assert await passes(checked, address) is (address == "8.8.8.8")

    async def test_no_such_name_is_nowhere(self) -> None:
        checked = SipGuard(own=[Listener("gone.example", 5060)], resolve=Names())
        assert await passes(checked, "8.8.8.8")

    async def test_asked_in_nobodys_share_and_kept(self, names: Moody, checked: SipGuard) -> None:
        for _ in range(3):
            assert await passes(checked, "8.8.8.8")
        assert sorted(names.asked, key=str) == [
            ("rtc.ours.example", None),
            ("sip.ours.example", None),
        ]

    @pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8"])
    async def test_the_last_answer_counts_while_there_is_no_other(
        self, names: Moody, address: str
    ) -> None:
        checked = SipGuard(own=self.OWN, resolve=names, own_kept_s=0)
        assert await passes(checked, "8.8.8.8")
        names.silent = True
        assert await passes(checked, address) is (address == "8.8.8.8")

    async def test_asked_again_after_a_while(self) -> None:
        names = Names(sip_ours_example=[[PUBLIC6], [PUBLIC]])
        own = [Listener("sip.ours.example", 5060)]
        checked = SipGuard(own=own, resolve=names, own_kept_s=0)
        assert await passes(checked, PUBLIC)
        assert not await passes(checked, PUBLIC)

    async def test_asked_together(self) -> None:
        both = asyncio.Barrier(2)

        async def together(_name: str, _tenant: str | None) -> Sequence[str]:
            async with asyncio.timeout(5):
                await both.wait()
            return [PUBLIC]

        own = [Listener("sip.ours.example", 5060), Listener("rtc.ours.example", 5060)]
        assert await passes(SipGuard(own=own, resolve=together), "8.8.8.8")

    async def test_a_tenant_with_a_slow_name_server_hides_none(self) -> None:
        """Our own names are still resolved if tenants have used up their lookups."""
        stuck = threading.Event()

        def system(name: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
            if name.startswith("slow"):
                stuck.wait(10)
            return answer(PUBLIC)

        lookups = Lookups(system)
        checked = SipGuard(own=[Listener("sip.ours.example", 5060)], resolve=lookups.resolve)
        stalled = [
            asyncio.ensure_future(asked(lookups, f"slow{n}.example", tenant))
            for tenant in ("acme", "")
            for n in range(LOOKUPS_PER_TENANT)
        ]
        try:
            await asyncio.sleep(0)
            assert not await passes(checked, PUBLIC)
            assert await passes(checked, "8.8.8.8")
        finally:
            stuck.set()
            await asyncio.gather(*stalled)


class TestUnknownTransport:
    """An address that a far end names may be reached with or without TLS."""

    @pytest.mark.parametrize(
        ("address", "allowed"),
        [
            (PUBLIC, False),  # port 5061 with TLS
            (f"{PUBLIC}:5061", False),
            (f"{PUBLIC}:5070", False),
            (f"{PUBLIC}:5062", True),
            ("8.8.8.8", True),
        ],
    )
    async def test_both_count(self, address: str, allowed: bool) -> None:
        own = [Listener(PUBLIC, 5061, tls_only=True), Listener(PUBLIC, 5070)]
        assert await passes(SipGuard(own=own), address, tls=None) is allowed
