"""Encode a recording as Ogg/Opus: ``python -m recordings.ogg call.wav call.ogg``.

It is a process of its own, at a low priority, so that it neither delays the audio of calls in
progress nor leaves FFmpeg's memory behind.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recordings.wav import RATE, Frames, blocks

if TYPE_CHECKING:
    import av

TRY_AGAIN = 75
"""The exit status after an OSError, as on a full disk (EX_TEMPFAIL of sysexits.h)."""

# At 48 kbit/s and "voip", -65 dB of one channel are heard on the other; at 64 kbit/s, -151 dB (both
# measured). With "audio", silence after speech is not quite zero.
_BIT_RATE = 64_000
_APPLICATION = "voip"
# bitexact: the same audio is encoded as the same bytes (FFmpeg's stream numbers are random).
_OPTIONS = {"fflags": "+bitexact"}


def encode(wav: Path, ogg: Path) -> None:
    """Write ``ogg`` whole, or not at all. Raises OSError, and av.FFmpegError."""
    import av  # not where only TRY_AGAIN is needed: it takes 20 MB

    partial = ogg.with_suffix(".tmp")
    with av.open(str(partial), "w", format="ogg", options=_OPTIONS) as container:
        stream = container.add_stream("libopus", RATE, layout="stereo", bit_rate=_BIT_RATE)
        stream.options = {"application": _APPLICATION}
        position = 0
        for block in blocks(wav):
            container.mux(stream.encode(_audio(block, position)))
            position += len(block)
        container.mux(stream.encode(None))
    with partial.open("rb") as file:
        os.fsync(file)  # the name must not outlive a power failure that the content does not
    partial.rename(ogg)


def _audio(block: Frames, position: int) -> av.AudioFrame:
    import av

    frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout="stereo")
    frame.sample_rate, frame.pts = RATE, position
    return frame


def main(wav: str, ogg: str) -> None:
    os.nice(10)
    try:
        encode(Path(wav), Path(ogg))
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(TRY_AGAIN)


if __name__ == "__main__":
    main(*sys.argv[1:])
