"""recordingUrl: what a link opens, for how long, and that nothing else opens with it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from core.tokens import TokenIssuer
from gateway.calls.streams.tokens import SessionTokens
from tests.conftest import ACME, RIVAL, SECRETS, operator
from tests.support.inprocess import SECRET, Running, running, settings_in
from tests.support.recordings import AUDIO, Recorded, ask, recorded_call, stored_call

pytestmark = [pytest.mark.store, pytest.mark.attack]

PUBLIC = "https://voice.example.com"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path, public_url=PUBLIC)) as started:
        yield started


async def link(recorded: Recorded, headers: dict[str, str] = ACME) -> str:
    """Return the path and query of the call's link."""
    url = (await recorded.shown(headers))["recordingUrl"]
    assert url.startswith(PUBLIC)
    return str(url.removeprefix(PUBLIC))


def token_of(path: str) -> str:
    return parse_qs(urlsplit(path).query)["token"][0]


class TestView:
    async def test_a_stored_recording_has_a_link(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await recorded_call(gateway)
        before = await recorded.shown()
        assert (before["recordingAvailable"], before["recordingUrl"]) == (False, None)
        await recorded.put(tmp_path)
        await recorded.report()
        assert (await recorded.shown())["recordingAvailable"] is True
        path = await link(recorded)
        assert (await ask(gateway, "GET", path)).body == AUDIO
        part = await ask(gateway, "GET", path, {"Range": "bytes=5-9"})
        assert (part.status, part.body) == (206, AUDIO[5:10])
        assert (await ask(gateway, "HEAD", path)).status == 200
        assert (await ask(gateway, "GET", path + "&format=ogg")).body.startswith(b"OggS")

    async def test_lists_have_it_too(self, gateway: Running, tmp_path: Path) -> None:
        recorded, other = await stored_call(gateway, tmp_path), await gateway.call()
        listed = (await ask(gateway, "GET", "/v1/calls", ACME)).json()["data"]
        shown = {call["id"]: call for call in listed}
        url = shown[recorded.call.id]["recordingUrl"]
        assert (await ask(gateway, "GET", url.removeprefix(PUBLIC))).status == 200
        assert shown[recorded.call.id]["recordingAvailable"]
        assert not shown[other.id]["recordingAvailable"]
        assert shown[other.id]["recordingUrl"] is None

    async def test_a_deleted_one_has_none(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        path = await link(recorded)
        await recorded.delete()
        after = await recorded.shown()
        assert (after["recordingAvailable"], after["recordingUrl"]) == (False, None)
        answer = await ask(gateway, "GET", path)
        assert (answer.status, answer.code) == (410, "RECORDING_DELETED")

    async def test_the_listener_is_who_got_the_link(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        for headers in (ACME, operator()):
            await ask(gateway, "GET", await link(recorded, headers))
        assert await recorded.events("recording.accessed") == [
            {"by": "acme", "via": "link", "what": "audio"},
            {"by": "operator", "via": "link", "what": "audio"},
        ]
        assert "acme" not in await link(recorded)


async def refused(gateway: Running, path: str) -> None:
    answer = await ask(gateway, "GET", path)
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert answer.json()["error"]["message"] == "The link is not valid, or has expired"


class TestForged:
    async def test_it_lasts_ten_minutes(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        path = await link(recorded)
        gateway.clock.forward(timedelta(minutes=9, seconds=50))
        assert (await ask(gateway, "GET", path)).status == 200
        gateway.clock.forward(timedelta(seconds=11))
        await refused(gateway, path)
        gateway.clock.forward(timedelta(hours=1))
        await refused(gateway, path)

    async def test_no_part_can_be_changed(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        token = token_of(await link(recorded))
        expires, holder, signature = token.split(".")
        for forged in (
            "",
            ".",
            "..",
            "x" * 200,
            "\u00fc.\u00fc.\u00fc",
            signature,
            f"{expires}.{holder}.",
            f"{expires}.{holder}.{signature[:-1]}",
            f"{expires}.{holder}.{signature}=",
            f"{int(expires) + 1}.{holder}.{signature}",
            f"{expires}.o.{signature}",
            f".{expires}.{holder}.{signature}",
            token.upper(),
        ):
            await refused(gateway, f"{recorded.path}?token={forged}")
        await refused(gateway, f"{recorded.path}?token=")

    async def test_it_opens_no_other_call(self, gateway: Running, tmp_path: Path) -> None:
        first = await stored_call(gateway, tmp_path)
        second = await stored_call(gateway, tmp_path)
        token = token_of(await link(first))
        await refused(gateway, f"{second.path}?token={token}")
        await refused(gateway, f"/v1/calls/call_none/recording?token={token}")

    async def test_nothing_else_takes_it(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        token, call = token_of(await link(recorded)), f"/v1/calls/{recorded.call.id}"
        for method, path in (
            ("DELETE", recorded.path),
            ("GET", f"{recorded.path}/peaks"),
            ("GET", f"{recorded.path}/waveform.svg"),
            ("GET", call),
            ("GET", f"{call}/transcript"),
            ("GET", f"{call}/events"),
            ("GET", "/v1/calls"),
        ):
            answer = await ask(gateway, method, f"{path}?token={token}")
            assert answer.status == 401, path
            answer = await ask(gateway, method, path, {"Authorization": f"Bearer {token}"})
            assert answer.status == 401, path
        assert recorded.file(tmp_path).exists()

    async def test_no_other_token_is_a_link(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        for token in (
            TokenIssuer(SECRET).for_call(recorded.call.id)[:200],
            SessionTokens(SECRET).callback_key(recorded.call.id),
            SECRETS["acme"],
        ):
            await refused(gateway, f"{recorded.path}?token={token}")

    async def test_with_a_header_the_header_decides(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        path = await link(recorded)
        assert (await ask(gateway, "GET", path, RIVAL)).status == 404
        assert (await ask(gateway, "GET", path, ACME)).status == 200
        assert (await ask(gateway, "GET", path, {"Authorization": "Bearer x"})).status == 401

    async def test_no_log_has_it(
        self, gateway: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        recorded = await stored_call(gateway, tmp_path)
        path = await link(recorded)
        await ask(gateway, "GET", path)
        await ask(gateway, "GET", path + "x")
        recorded.file(tmp_path).unlink()
        await ask(gateway, "GET", path)
        # The test's server logs requests; the gateway's does not (gateway.__main__).
        ours = [record for record in caplog.records if record.name != "aiohttp.access"]
        written = "".join(f"{record.__dict__}" for record in ours)
        assert "the store of recordings has lost an object" in written
        assert token_of(path) not in written
        assert token_of(path).rpartition(".")[2] not in written
