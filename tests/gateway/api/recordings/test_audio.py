"""A recording over HTTP: whole, in ranges, converted; who gets it, and what the timeline says."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest

from core.models import CallEvent
from gateway.api.recordings import audio as api_audio
from gateway.keys import WORKSHOP
from gateway.recordings import audio
from recordings.store import RecordingStore
from tests.conftest import ACME, RIVAL, operator
from tests.support.inprocess import Running, running, settings_in
from tests.support.recordings import AUDIO, ask, end, recorded_call, stored_call, tone, wav

pytestmark = pytest.mark.store


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as started:
        yield started


class TestWhole:
    async def test_it_is_the_stored_object(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        answer = await recorded.get()
        assert (answer.status, answer.body) == (200, AUDIO)
        wanted = {
            "Content-Type": "audio/wav",
            "Content-Length": str(len(AUDIO)),
            "Content-Disposition": f'inline; filename="{recorded.call.id}.wav"',
            "ETag": f'"{recorded.stored["sha256"]}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-store",
            "X-Content-Type-Options": "nosniff",
        }
        assert {name: answer.headers.get(name) for name in wanted} == wanted

    async def test_head_has_the_same_headers_and_nobody_listened(
        self, gateway: Running, tmp_path: Path
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        head = await ask(gateway, "HEAD", recorded.path, {**ACME, "Range": "bytes=0-9"})
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(AUDIO))
        assert await recorded.events("recording.accessed") == []

    @pytest.mark.parametrize("format", ["ogg", "wav"])
    async def test_in_the_format_that_is_asked_for(
        self, gateway: Running, tmp_path: Path, format: str
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        answer = await recorded.get(f"?format={format}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, f"audio/{format}")
        if format == "wav":
            assert answer.body == AUDIO
            return
        assert answer.body.startswith(b"OggS")
        with av.open(io.BytesIO(answer.body), "r") as opened:
            seconds = sum(frame.samples for frame in opened.decode(audio=0)) / 48_000
        assert seconds == pytest.approx(2, abs=0.05)
        again = await recorded.get(f"?format={format}", {"Range": "bytes=100-199"})
        assert (again.status, again.body) == (206, answer.body[100:200])

    async def test_of_a_stored_ogg_a_wav_can_be_had(self, gateway: Running, tmp_path: Path) -> None:
        ogg = (await (await stored_call(gateway, tmp_path)).get("?format=ogg")).body
        recorded = await recorded_call(gateway, ogg, format="ogg")
        recorded = type(recorded)(gateway, recorded.call, recorded.key[:-3] + "ogg", ogg)
        await recorded.put(tmp_path)
        assert (await recorded.report(format="ogg", durationMs=2000))[0] == 200
        assert (await recorded.get()).body == ogg
        answer = await recorded.get("?format=wav")
        with wave.open(io.BytesIO(answer.body), "rb") as file:
            assert (file.getnchannels(), file.getframerate()) == (2, 16_000)
            samples = np.frombuffer(file.readframes(10**6), np.int16).reshape(-1, 2)
        assert len(samples) == pytest.approx(32_000, abs=400)
        # Each on their own channel.
        first, second = np.abs(samples[2000:14_000]).max(0), np.abs(samples[18_000:30_000]).max(0)
        assert first[0] > 12_000 > 1000 > first[1]
        assert second[1] > 6000 > 1000 > second[0]

    async def test_of_a_moment(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await recorded_call(gateway, wav(tone(0.04), tone(0.04)))
        await recorded.put(tmp_path)
        await recorded.report()
        answer = await recorded.get("?format=ogg")
        assert answer.body.startswith(b"OggS")  # though it fits into a buffer

    async def test_an_unknown_format_is_refused(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        assert (await recorded.get("?format=mp3")).status == 422

    async def test_no_more_are_decoded_than_fit(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        gateway.app[WORKSHOP]._free = 0
        for rest in ("?format=ogg", "/peaks", "/waveform.svg"):
            answer = await recorded.get(rest)
            assert (answer.status, answer.code) == (503, "RECORDINGS_BUSY")
        assert (await recorded.get()).status == 200
        gateway.app[WORKSHOP]._free = 1
        for _ in range(3):
            assert (await recorded.get("/peaks")).status == 200

    async def test_a_conversion_is_kept_for_the_next_range(
        self, gateway: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        whole = await recorded.get("?format=ogg")
        monkeypatch.delattr(audio, "convert")  # it is not converted again
        parts = [f"bytes={start}-{start + 499}" for start in range(0, 2000, 500)]
        answers = await asyncio.gather(
            *(recorded.get("?format=ogg", {"Range": part}) for part in parts)
        )
        assert b"".join(answer.body for answer in answers) == whole.body[:2000]
        assert (await recorded.delete()).status == 200
        assert (await recorded.get("?format=ogg")).status == 410


class TestRanges:
    @pytest.mark.parametrize(
        ("asked", "start", "end"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=0-43", 0, 44),
            ("bytes=100000-", 100_000, len(AUDIO)),
            ("bytes=-100", len(AUDIO) - 100, len(AUDIO)),
            (f"bytes=-{10 * len(AUDIO)}", 0, len(AUDIO)),
            ("bytes=10-99999999", 10, len(AUDIO)),
        ],
    )
    async def test_one(
        self, gateway: Running, tmp_path: Path, asked: str, start: int, end: int
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        answer = await recorded.get(headers={"Range": asked})
        assert (answer.status, answer.body) == (206, AUDIO[start:end])
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(AUDIO)}"

    @pytest.mark.parametrize("asked", [f"bytes={len(AUDIO)}-", "bytes=-0", "bytes=999999-"])
    async def test_outside(self, gateway: Running, tmp_path: Path, asked: str) -> None:
        recorded = await stored_call(gateway, tmp_path)
        answer = await recorded.get(headers={"Range": asked})
        assert (answer.status, answer.code) == (416, "RANGE_NOT_SATISFIABLE")
        assert answer.headers["Content-Range"] == f"bytes */{len(AUDIO)}"

    @pytest.mark.parametrize(
        "asked", ["bytes=9-2", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=0-1,5-6", "bytes=٣-"]
    )
    async def test_what_cannot_be_served_is_ignored(
        self, gateway: Running, tmp_path: Path, asked: str
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        answer = await recorded.get(headers={"Range": asked})
        assert (answer.status, len(answer.body)) == (200, len(AUDIO))

    async def test_of_this_version_only(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        etag = f'"{recorded.stored["sha256"]}"'
        same = await recorded.get(headers={"Range": "bytes=0-9", "If-Range": etag})
        other = await recorded.get(headers={"Range": "bytes=0-9", "If-Range": '"other"'})
        assert (same.status, other.status) == (206, 200)


class TestState:
    async def test_a_call_without_one(self, gateway: Running) -> None:
        call = await gateway.call()
        for rest in ("", "/peaks", "/waveform.svg"):
            answer = await ask(gateway, "GET", f"/v1/calls/{call.id}/recording{rest}", ACME)
            assert (answer.status, answer.code) == (404, "RECORDING_NOT_FOUND")

    async def test_not_yet(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await recorded_call(gateway)
        started = CallEvent(type="recording.started", data={"format": "wav"})
        answer = await recorded.get()
        assert (answer.status, answer.code) == (425, "RECORDING_NOT_READY")
        assert answer.headers["Retry-After"]
        await recorded.tell(started)
        await end(recorded)
        assert (await recorded.get()).status == 425  # to be uploaded
        await recorded.put(tmp_path)
        await recorded.report()
        assert (await recorded.get()).status == 200

    @pytest.mark.parametrize("told", [(), ("recording.started", "recording.failed")])
    async def test_never(self, gateway: Running, told: tuple[str, ...]) -> None:
        """No consent, or a recording that failed."""
        recorded = await recorded_call(gateway)
        await recorded.tell(*(CallEvent(type=type) for type in told), CallEvent(type="agent.left"))
        await end(recorded)
        assert (await recorded.get()).code == "RECORDING_NOT_FOUND"

    async def test_a_store_that_lost_it_or_a_part(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        recorded.file(tmp_path).unlink()
        for rest in ("", "?format=ogg", "/peaks"):
            answer = await recorded.get(rest)
            assert (answer.status, answer.code) == (404, "RECORDING_NOT_FOUND")
        recorded.file(tmp_path).write_bytes(AUDIO[:1000])
        with pytest.raises(Exception, match=r"(?i)payload|disconnected|reset"):
            await recorded.get()


class TestSlowClients:
    async def test_no_more_is_read_than_is_sent(
        self, gateway: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client that reads nothing fills the sockets' buffers, and is then cut off."""
        block, cut_off, pieces = bytes(2**20), asyncio.Event(), 0

        async def endless(*_: object, **__: object) -> AsyncIterator[bytes]:
            nonlocal pieces
            try:
                for _number in range(100):
                    pieces += 1
                    yield block
            finally:
                cut_off.set()

        recorded = await recorded_call(gateway)
        await recorded.report(bytes=100 * len(block))
        monkeypatch.setattr(RecordingStore, "read", endless)
        monkeypatch.setattr(api_audio, "_WRITE_DEADLINE_S", 0.3)
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        token = ACME["Authorization"]
        writer.write(
            f"GET {recorded.path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode()
        )
        await reader.readline()
        async with asyncio.timeout(20):
            await cut_off.wait()
        assert pieces < 20
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(100 * len(block))
        writer.close()


class TestAccess:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
    @pytest.mark.parametrize("rest", ["", "/peaks", "/waveform.svg"])
    async def test_another_tenants_does_not_exist(
        self, gateway: Running, tmp_path: Path, method: str, rest: str
    ) -> None:
        if method == "DELETE" and rest:
            return
        recorded = await stored_call(gateway, tmp_path)
        theirs = await ask(gateway, method, recorded.path + rest, RIVAL)
        nobodys = await ask(gateway, method, f"/v1/calls/call_none/recording{rest}", RIVAL)
        assert (theirs.status, theirs.body) == (nobodys.status, nobodys.body)
        assert theirs.status == 404
        assert recorded.file(tmp_path).exists()

    async def test_without_a_token(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        for rest in ("", "/peaks", "/waveform.svg"):
            answer = await ask(gateway, "GET", recorded.path + rest)
            assert (answer.status, answer.code) == (401, "MISSING_AUTH_HEADER")

    @pytest.mark.attack
    @pytest.mark.parametrize(
        "name", ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "call_%00", "*", "%5c..%5c"]
    )
    async def test_no_path_leads_elsewhere(self, gateway: Running, name: str) -> None:
        answer = await ask(gateway, "GET", f"/v1/calls/{name}/recording", ACME)
        assert answer.status == 404

    async def test_who_listened_is_on_the_timeline_once_a_minute(
        self, gateway: Running, tmp_path: Path
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        for start in range(3):
            await recorded.get(headers={"Range": f"bytes={start}-"})
        await asyncio.gather(*(recorded.get("/peaks") for _ in range(3)))
        await ask(gateway, "GET", recorded.path + "/waveform.svg", operator())
        assert await recorded.events("recording.accessed") == [
            {"by": "acme", "via": "api", "what": "audio"},
            {"by": "acme", "via": "api", "what": "peaks"},
            {"by": "operator", "via": "api", "what": "waveform"},
        ]
