"""core.audio (µ-law) and dev.providers.g711 (A-law) against the ITU-T recommendation."""

from __future__ import annotations

import numpy as np
import pytest

from core.audio import ulaw_decode, ulaw_encode
from dev.providers.g711 import alaw_decode, alaw_encode

pytestmark = pytest.mark.unit

# ITU-T G.711 tables 5 and 6: one period of the 1 kHz digital milliwatt (0 dBm0), which
# is 3.14 dB (A-law) and 3.17 dB (µ-law) below a sine of full scale.
MILLIWATT_ALAW = bytes.fromhex("34 21 21 34 b4 a1 a1 b4")
MILLIWATT_ULAW = bytes.fromhex("1e 0b 0b 1e 9e 8b 8b 9e")

# Tables 2a and 2b: code on the wire → output value of a 14-bit decoder.
ULAW_VALUES = {
    0x80: 8031, 0x8F: 4191, 0x9F: 2079, 0xAF: 1023, 0xBF: 495, 0xCF: 231, 0xDF: 99, 0xEF: 33,
    0xFE: 2, 0xFF: 0, 0x00: -8031, 0x7E: -2, 0x7F: 0,
}  # fmt: skip

# Tables 1a and 1b: code on the wire (even bits inverted) → output value on the scale of 4096.
ALAW_VALUES = {
    0xAA: 4032, 0xA5: 2112, 0xB5: 1056, 0x85: 528, 0x95: 264, 0xE5: 132, 0xF5: 66, 0xD5: 1,
    0x2A: -4032, 0x55: -1,
}  # fmt: skip


@pytest.mark.parametrize(("code", "value"), ULAW_VALUES.items())
def test_ulaw_decodes_to_the_values_of_the_tables(code: int, value: int) -> None:
    assert int(ulaw_decode(bytes([code]))[0]) == value * 4


@pytest.mark.parametrize(("code", "value"), ALAW_VALUES.items())
def test_alaw_decodes_to_the_values_of_the_tables(code: int, value: int) -> None:
    assert int(alaw_decode(bytes([code]))[0]) == value * 8


def test_the_milliwatt_has_its_level() -> None:
    for pcm, full_scale, below_db in (
        (ulaw_decode(MILLIWATT_ULAW), 8159 * 4, 3.17),
        (alaw_decode(MILLIWATT_ALAW), 4096 * 8, 3.14),
    ):
        rms = float(np.sqrt(np.mean(np.square(pcm.astype(np.float64)))))
        assert 20 * np.log10(rms * np.sqrt(2) / full_scale) == pytest.approx(-below_db, abs=0.01)


def test_a_code_survives_decoding_and_encoding() -> None:
    codes = bytes(range(256))
    # 0x7F is µ-law's second zero: both are encoded as the positive one.
    assert ulaw_encode(ulaw_decode(codes)) == codes.replace(b"\x7f", b"\xff")
    assert alaw_encode(alaw_decode(codes)) == codes


def test_every_sample_gets_the_nearest_code_of_its_sign() -> None:
    pcm = np.arange(-32768, 32768).astype(np.int16)
    for encode, decode, smallest in ((ulaw_encode, ulaw_decode, 8), (alaw_encode, alaw_decode, 16)):
        again = decode(encode(pcm)).astype(np.int64)
        error = np.abs(again - pcm)
        # A segment's step is 1/16 of its lower bound, so an error is at most 1/32 of the value,
        # half a step near zero, or what lies above the last code.
        inside = np.abs(pcm.astype(np.int64)) <= 32124
        assert np.all(error[inside] <= np.abs(pcm[inside].astype(np.int64)) / 32 + smallest)
        assert np.all(np.diff(again) >= 0)


def test_samples_of_a_slice_are_encoded_in_order() -> None:
    stereo = np.array([0, 9, 1000, 9, -1000, 9, 32767, 9], np.int16)
    assert ulaw_encode(stereo[::2]) == bytes.fromhex("ff ce 4e 80")
    assert ulaw_encode(np.zeros(0, np.int16)) == b""
