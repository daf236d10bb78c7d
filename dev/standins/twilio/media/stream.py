"""One media stream: the audio of a call over a WebSocket, both ways, in real time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from dev.standins.twilio.media import messages
from dev.standins.twilio.media.heard import Heard
from dev.standins.twilio.media.network import Network, Wire
from dev.standins.twilio.media.playout import BYTES_PER_MS, Playout
from dev.standins.twilio.media.ticker import FRAME_MS, FrameClock, Ticker, frame_s
from dev.standins.twilio.media.websocket import Closed, WebSocket, connect


@dataclass(frozen=True)
class ClearedAt:
    """A ``clear`` from the server: what it dropped, and what was played after it arrived."""

    at_ms: float
    """When it arrived, on the call's clock."""
    dropped_ms: float
    played_after_ms: float
    """The rest of the 20 ms that were being played."""


@dataclass(frozen=True)
class EchoedMark:
    name: str
    at_ms: float
    """When it was echoed, on the call's clock."""
    cleared: bool
    """True if it was echoed because of a ``clear``."""


class MediaStream:
    """A stream from its ``start`` to its end. It plays to ``heard`` what the server sends.

    ``next_payload`` gives the caller's next 20 ms in base64.
    """

    def __init__(
        self,
        sids: tuple[str, str, str],
        heard: Heard,
        next_payload: Callable[[], str],
        network: Network,
    ) -> None:
        self.account_sid, self.call_sid, self.sid = sids
        self.marks: list[EchoedMark] = []
        self.clears: list[ClearedAt] = []
        self.received_ms = 0.0
        """Audio that the server has sent."""
        self.playout = Playout()
        self.on_loss: Callable[[], None] = lambda: None
        """It is called when a first message is lost because the server does not read."""
        self._writer = messages.Writer(*sids)
        self._heard = heard
        self._next_payload = next_payload
        self._wire = Wire(network)
        self._drift_ppm = network.drift_ppm
        self._clock = FrameClock(network.drift_ppm)
        self._socket: WebSocket | None = None
        self._frames = 0
        self._frame_at = 0.0
        self._frame_ms = 0.0
        self._frozen = False

    async def open(
        self,
        url: str,
        address: tuple[str, int],
        signature: str,
        parameters: Mapping[str, str],
    ) -> None:
        """Connect, and send ``connected`` and ``start``. Raises Fault."""
        parts = urlsplit(url)
        headers = {
            "Host": parts.netloc,
            "User-Agent": "Twilio.TmeWs/1.0",
            "X-Twilio-Signature": signature,
        }
        self._socket = await connect(parts.path or "/", address, headers, self._on_text)
        self._send(messages.CONNECTED)
        self._send(self._writer.start(parameters))

    async def run(self, ticker: Ticker) -> Closed:
        """Send and play until the connection has ended. Cancelled: send ``stop``, and close.

        ``ticker`` is the one of all streams; a stream whose clock drifts has its own.
        """
        if not self._drift_ppm:
            return await self._run(ticker)
        own = Ticker(frame_s(self._drift_ppm))
        running = asyncio.create_task(own.run())
        try:
            return await self._run(own)
        finally:
            running.cancel()

    async def _run(self, ticker: Ticker) -> Closed:
        ticker.add(self.tick)
        try:
            return await asyncio.shield(self.socket.closed)
        except asyncio.CancelledError:
            ticker.remove(self.tick)  # Nothing may follow the stop.
            self._send(self._writer.stop())
            await self.socket.close()
            raise
        finally:
            ticker.remove(self.tick)

    @property
    def socket(self) -> WebSocket:
        assert self._socket is not None, "the stream is not open"
        return self._socket

    @property
    def live(self) -> bool:
        return self._socket is not None and not self._socket.closed.done()

    @property
    def longest_queue_ms(self) -> float:
        """The longest that the queue of audio to be played has been."""
        return self.playout.longest_ms

    def press(self, digit: str) -> None:
        self._send(self._writer.dtmf(digit))

    def freeze(self) -> None:
        self._frozen = True
        self.socket.freeze()

    # --- Real time

    def tick(self, now: float) -> None:
        """Send and play the frames that are due at ``now`` (the loop's time, in seconds)."""
        for _ in range(self._clock.due(now)):
            if self.live and not self._frozen:
                self._frame(now)

    def _frame(self, now: float) -> None:
        self._echo(self.playout.finish_frame())
        playing = self.playout.take()
        self._heard.add(playing)
        self._frame_at, self._frame_ms = now, len(playing) / BYTES_PER_MS
        message = self._writer.media(
            self._frames + 1, self._frames * FRAME_MS, self._next_payload()
        )
        self._frames += 1
        for each in self._wire.carry(message):
            self._send(each)

    def _on_text(self, text: str) -> None:
        match messages.parse(text, self.sid):
            case messages.Media(ulaw):
                self.received_ms += len(ulaw) / BYTES_PER_MS
                self.playout.add(ulaw)
            case messages.Mark(name):
                self._echo(self.playout.mark(name))
            case messages.Clear():
                self._clear()

    def _clear(self) -> None:
        since_ms = (asyncio.get_running_loop().time() - self._frame_at) * 1000
        rest_ms = max(0.0, self._frame_ms - since_ms)
        at_ms = self._heard.ms - max(0.0, FRAME_MS - since_ms)
        self.clears.append(ClearedAt(at_ms, self.playout.queued_ms, rest_ms))
        self._echo(self.playout.clear(), cleared=True)

    def _echo(self, names: list[str], cleared: bool = False) -> None:
        for name in names:
            self.marks.append(EchoedMark(name, self._heard.ms, cleared))
            self._send(self._writer.mark(name))

    def _send(self, message: str) -> None:
        if self._socket is not None and not self._socket.send(message):
            if self._socket.dropped == 1:
                self.on_loss()
