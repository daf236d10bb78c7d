"""An audio output that passes everything on, for those that only watch what is played."""

from __future__ import annotations

from livekit import rtc
from livekit.agents.voice import io


class PassingOutput(io.AudioOutput):
    """Passes everything on to ``sink``, which may pause."""

    def __init__(self, label: str, sink: io.AudioOutput) -> None:
        super().__init__(
            label=label,
            next_in_chain=sink,
            sample_rate=sink.sample_rate,
            capabilities=io.AudioOutputCapabilities(pause=True),
        )
        assert self.next_in_chain is not None  # livekit-agents may put something in between
        self.sink = self.next_in_chain

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await self.sink.capture_frame(frame)
        await super().capture_frame(frame)

    def flush(self) -> None:
        super().flush()
        self.sink.flush()

    def clear_buffer(self) -> None:
        self.sink.clear_buffer()
