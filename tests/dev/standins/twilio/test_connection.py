"""What goes wrong between Twilio and the application: breaks, slow readers, loss, drift."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from dev.standins.twilio import Call, Network
from dev.standins.twilio.call import Document
from dev.standins.twilio.media.ticker import FrameClock, next_visit
from tests.dev.standins.twilio.rig import CALLER, NUMBER, Peer, Rig, rig

pytestmark = pytest.mark.unit

STREAM = '<Connect><Stream url="{ws}" name="s" statusCallback="/stream-status"/></Connect>'
NEXT = STREAM + "<Redirect>/resume</Redirect>"


@pytest_asyncio.fixture
async def here() -> AsyncIterator[Rig]:
    async with rig() as made:
        made.voice(NEXT)
        made.voice("<Say>Back.</Say>", "/resume")
        yield made


async def connected(here: Rig) -> tuple[Call, Peer]:
    call = await here.twilio.call(NUMBER, CALLER)
    return call, await here.app.peer()


def told(here: Rig) -> list[str]:
    return [form["StreamEvent"] for form in here.app.forms("/stream-status")]


class TestEnds:
    async def test_the_stream_tells_its_start_and_its_stop(self, here: Rig) -> None:
        call, _ = await connected(here)
        call.hang_up()
        await call.ended()
        assert told(here) == ["stream-started", "stream-stopped"]
        form = here.app.forms("/stream-status")[0]
        assert form["StreamSid"] == call.stream.sid and form["CallSid"] == call.sid
        assert form["StreamName"] == "s" and form["Timestamp"].endswith("Z")

    async def test_the_application_closes_and_the_next_verb_follows(self, here: Rig) -> None:
        call, peer = await connected(here)
        await peer.socket.close()
        await call.ended()
        assert call.said == ["Back."] and told(here) == ["stream-started", "stream-stopped"]
        assert [alert.code for alert in call.alerts] == [31921]
        assert peer.of("stop") == []

    async def test_a_second_stream_continues_the_recording(self, here: Rig) -> None:
        here.voice("<Say>Wait.</Say>" + STREAM, "/resume")
        call, peer = await connected(here)
        await peer.media(b"\x10" * 160)
        await call.heard.until_sound()
        await peer.socket.close()
        again = await here.app.peer(2)
        assert again.sid != peer.sid and call.streams[1].sid == again.sid
        await again.media(b"\x20" * 160)
        second_ms = await call.heard.until_sound(call.heard.ulaw.index(b"\x10") / 8 + 20)
        # The pause of <Say> is in it.
        assert second_ms - call.heard.ulaw.index(b"\x10") / 8 >= 50
        assert again.of("media") == [] or again.of("media")[0]["media"]["chunk"] == "1"

    async def test_a_refused_stream_goes_to_the_next_verb(self, here: Rig) -> None:
        here.app.refuse = 403
        call = await here.twilio.call(NUMBER, CALLER)
        await call.ended()
        assert call.said == ["Back."] and told(here) == ["stream-error"]
        assert [alert.code for alert in call.alerts] == [31920]
        assert "403" in here.app.forms("/stream-status")[0]["StreamError"]

    @pytest.mark.parametrize(
        ("url", "code"), [("ws://127.0.0.1:9/s", 31902), ("wss://a.example/s", 11210)]
    )
    async def test_a_server_that_is_away(self, here: Rig, url: str, code: int) -> None:
        here.voice(NEXT.replace("{ws}", url))
        call = await here.twilio.call(NUMBER, CALLER)
        await call.ended()
        assert [alert.code for alert in call.alerts] == [code] and call.said == ["Back."]


class TestViolations:
    @pytest.mark.parametrize("kind", ["text", "bytes", "event", "other stream"])
    async def test_the_stream_ends_with_an_error(self, here: Rig, kind: str) -> None:
        call, peer = await connected(here)
        match kind:
            case "text":
                await peer.socket.send_str("hello")
            case "bytes":
                await peer.socket.send_bytes(bytes(160))
            case "event":
                await peer.send("stop")
            case "other stream":
                await peer.socket.send_str(json.dumps({"event": "clear", "streamSid": "MZ0"}))
        await call.ended()
        await peer.ended()
        assert [alert.code for alert in here.twilio.take_alerts()] == [31924]
        assert told(here) == ["stream-started", "stream-error"]
        assert "31924" in here.app.forms("/stream-status")[1]["StreamError"]
        assert peer.socket.close_code == 1002


class TestBreaks:
    async def test_a_torn_connection_goes_to_the_next_verb(self, here: Rig) -> None:
        call, peer = await connected(here)
        call.caller.drop()
        await call.ended()
        await peer.ended()
        assert call.said == ["Back."] and told(here) == ["stream-started", "stream-error"]
        assert peer.of("stop") == [] and peer.socket.close_code in (None, 1006)

    async def test_a_break_at_the_applications_end(self, here: Rig) -> None:
        call, peer = await connected(here)
        peer.abort()
        await call.ended()
        assert call.said == ["Back."] and told(here) == ["stream-started", "stream-error"]

    async def test_with_callback_only_a_rest_update_brings_it_back(self, here: Rig) -> None:
        here.twilio.after_break = "callback"
        call, _ = await connected(here)
        call.caller.drop()
        await here.app.until("/stream-status", 2)
        assert not call.over and call.said == []
        call.order(Document("<Response><Say>Again.</Say></Response>"))
        assert await call.ended() == "completed"
        assert call.said == ["Again."]

    async def test_with_callback_the_call_ends_after_a_while(self, here: Rig) -> None:
        here.twilio.after_break = "callback"
        call, _ = await connected(here)
        call.rest_wait_s = 0.05
        call.caller.drop()
        assert await call.ended() == "completed"
        assert call.said == []

    async def test_a_half_open_connection_says_nothing(self, here: Rig) -> None:
        call, peer = await connected(here)
        await peer.until("media", 2)
        call.caller.freeze()
        other, witness = await here.twilio.call(NUMBER, CALLER), await here.app.peer(2)
        before = len(peer.got)
        await peer.clear()
        await witness.until("media", 5)
        # What was under way has arrived; 100 ms later there is nothing more, not even an end.
        assert len(peer.got) <= before + 1 and not peer.gone
        assert call.stream.clears == [] and call.stream.live and not other.over


class TestSlowReaders:
    async def test_nothing_is_read_until_reading_resumes(self, here: Rig) -> None:
        call, peer = await connected(here)
        call.caller.pause_reading()
        await peer.mark("late")
        await peer.until("media", len(peer.of("media")) + 3)
        assert call.stream.marks == []
        call.caller.resume_reading()
        await peer.until("mark")

    async def test_a_server_that_does_not_read_loses_audio(self, here: Rig) -> None:
        call = await here.twilio.call(NUMBER, CALLER, network=Network(drift_ppm=1e9))
        peer = await here.app.peer()
        peer.reading.clear()
        await call.alerted(31930)
        peer.reading.set()
        call.hang_up()
        await call.ended()
        assert [alert.code for alert in call.alerts] == [31930]


class TestClock:
    @pytest.mark.parametrize(("ppm", "frames"), [(0, 30_000), (200, 30_006), (-200, 29_994)])
    def test_ten_minutes_of_drift(self, ppm: float, frames: int) -> None:
        clock = FrameClock(ppm)
        assert sum(clock.due(1000 + tick * 0.02) for tick in range(30_001)) == frames

    def test_a_timer_that_is_early_or_late_changes_nothing(self) -> None:
        clock, jitter = FrameClock(0), random.Random(1)
        clock.due(0)
        due = [clock.due(tick * 0.02 + jitter.uniform(-0.009, 0.009)) for tick in range(1, 500)]
        assert set(due) == {1}

    def test_after_a_stall_what_was_left_out_is_due_at_once(self) -> None:
        clock = FrameClock(0)
        assert [clock.due(now) for now in (0, 0.02, 0.22, 0.24)] == [0, 1, 10, 1]

    def test_a_stall_does_not_move_the_visits_after_it(self) -> None:
        assert next_visit(1.0, 0.999, 0.02) == 1.0
        assert next_visit(1.0, 1.019, 0.02) == 1.0
        assert next_visit(1.0, 1.053, 0.02) == pytest.approx(1.04)

    async def test_a_calls_clock_can_run_fast(self, here: Rig) -> None:
        slow = await here.twilio.call(NUMBER, CALLER)
        first = await here.app.peer()
        fast = await here.twilio.call(NUMBER, CALLER, network=Network(drift_ppm=1e6))
        second = await here.app.peer(2)
        await first.until("media", 10)
        before = len(first.of("media")), len(second.of("media"))
        await first.until("media", 25)
        ran = len(second.of("media")) - before[1]
        assert ran == pytest.approx(2 * (len(first.of("media")) - before[0]), abs=4)
        assert fast.heard.ms > slow.heard.ms


class TestLoss:
    async def test_lost_frames_leave_gaps_in_the_numbers(self, here: Rig) -> None:
        call = await here.twilio.call(NUMBER, CALLER, network=Network(loss=50, seed=3))
        peer = await here.app.peer()
        media = await peer.until("media", 10)
        chunks = [int(each["media"]["chunk"]) for each in media]
        assert chunks == sorted(set(chunks)) and chunks[-1] > len(chunks)
        assert all(
            int(each["media"]["timestamp"]) == 20 * (int(each["media"]["chunk"]) - 1)
            for each in media
        )
        call.hang_up()
        await call.ended()
        assert peer.got[-1]["event"] == "stop"
