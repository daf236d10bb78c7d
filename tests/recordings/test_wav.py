"""Tests of recordings.wav: files are valid at each moment, whole after repair, and of any size."""

from __future__ import annotations

import os
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest

from recordings.wav import DATA_AT, FRAME, Frames, WavWriter, blocks, decode, header, repair

pytestmark = pytest.mark.unit


def some(count: int, seed: int = 1) -> Frames:
    return np.random.default_rng(seed).integers(-32768, 32767, (count, 2), dtype=np.int16)


def read(path: Path) -> Frames:
    """Read with the standard library, which knows nothing of how the file is written."""
    with wave.open(str(path)) as file:
        assert file.getparams()[:3] == (2, 2, 16_000)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, 2)


def test_a_file_has_what_was_appended_after_each_append(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    writer = WavWriter(path)
    assert len(read(path)) == 0
    writer.append(some(700))
    assert np.array_equal(read(path), some(700))
    writer.append(some(300, 2))
    writer.close()
    assert np.array_equal(read(path), np.concatenate([some(700), some(300, 2)]))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_file_cut_off_while_pcm_was_appended_is_valid_and_repaired(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "a.wav"
    writer = WavWriter(path)
    writer.append(some(100))
    writer.close()
    with path.open("ab") as file:  # the end of the process, before the header's update
        file.write(some(50, 2).tobytes() + b"\1" * cut)
    assert np.array_equal(read(path), some(100))
    for _ in range(2):
        assert repair(path) == 150
        assert np.array_equal(read(path), np.concatenate([some(100), some(50, 2)]))
        assert path.stat().st_size == DATA_AT + 150 * FRAME


def test_a_file_that_was_only_begun_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(header(0)[:10])
    assert repair(path) == 0
    assert len(read(path)) == 0


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    writer = WavWriter(path)
    writer.append(some(100))
    real, full = os.pwrite, [True]

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        if full[0] and offset + len(data) > 1000:
            if offset >= 1000:
                raise OSError(28, "No space left on device")
            data = data[: 1000 - offset]
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space"):
        writer.append(some(500, 2))
    assert writer.frames == 100
    assert path.stat().st_size == DATA_AT + 100 * FRAME
    full[0] = False
    writer.append(some(500, 3))
    assert np.array_equal(read(path), np.concatenate([some(100), some(500, 3)]))


def test_a_failed_update_of_the_header_takes_the_pcm_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    writer = WavWriter(path)
    real = os.pwrite

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        if offset == 0:
            raise OSError(28, "No space left on device")
        return real(file, data, offset)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "pwrite", pwrite)
        writer.append(some(10))
    writer.append(some(20, 2))
    assert np.array_equal(read(path), some(20, 2))


def test_a_call_of_24_hours_is_one_valid_file(tmp_path: Path) -> None:
    """Its 5.5 GB do not fit the sizes of a WAV file; this one is sparse."""
    path, frames = tmp_path / "a.wav", 24 * 3600 * 16_000
    WavWriter(path).close()
    os.truncate(path, DATA_AT + frames * FRAME)
    assert repair(path) == frames
    with av.open(str(path)) as container:
        assert container.format.name == "wav"
        stream = container.streams.audio[0]
        assert (stream.channels, stream.sample_rate) == (2, 16_000)
        assert stream.duration == frames


def test_the_largest_file_with_sizes_of_32_bits_is_not_rf64() -> None:
    largest = (0xFFFF_FFFF - DATA_AT + 8) // FRAME
    assert header(largest)[:4] == b"RIFF"
    assert header(largest + 1)[:4] == b"RF64"
    assert len(header(largest)) == len(header(largest + 1)) == DATA_AT


async def test_readers_yield_all_frames_in_blocks(tmp_path: Path) -> None:
    path, frames = tmp_path / "a.wav", some(1000)
    writer = WavWriter(path)
    writer.append(frames)
    writer.close()
    found = list(blocks(path, 300))
    assert [len(block) for block in found] == [300, 300, 300, 100]
    assert np.array_equal(np.concatenate(found), frames)

    async def chunks(size: int) -> AsyncIterator[bytes]:
        data = path.read_bytes()
        for start in range(0, len(data), size):
            yield data[start : start + size]

    for size in (1, 7, 79, 80, 81, 5000):
        decoded = [block async for block in decode(chunks(size))]
        assert np.array_equal(np.concatenate(decoded), frames)
