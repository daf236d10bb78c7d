"""Audio as it is passed on within a process, and the telephone network's µ-law code for it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Pcm: TypeAlias = npt.NDArray[np.int16]
"""Samples of 16 bits, one channel."""


def ulaw_encode(pcm: Pcm) -> bytes:
    """Return one µ-law byte per 16-bit sample (any sample rate; telephony uses 8000 Hz)."""
    return _ULAW_ENCODE[pcm.view(np.uint16)].tobytes()


def ulaw_decode(data: bytes) -> Pcm:
    """Return one 16-bit sample per µ-law byte."""
    return _ULAW_DECODE[np.frombuffer(data, np.uint8)]


def _ulaw_decode_table() -> Pcm:
    """ITU-T G.711 table 2, as in the ITU's reference code (G.191, ``g711.c``)."""
    code = np.arange(256)
    inverted = ~code & 0x7F
    exponent, mantissa = inverted >> 4, inverted & 0xF
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


def _ulaw_encode_table() -> npt.NDArray[np.uint8]:
    """The code of every int16, in the order of its bit pattern.

    Negative values use ones' complement: G.711 has no code for -0 and is symmetric around -½.
    """
    sample = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int64)
    magnitude = np.minimum((np.where(sample < 0, ~sample, sample) >> 2) + 33, 0x1FFF)
    segment = np.floor(np.log2(magnitude)).astype(np.int64) - 5
    step = (magnitude >> (segment + 1)) & 0xF
    sign = np.where(sample < 0, 0, 0x80)
    code: npt.NDArray[np.int64] = ((7 - segment) << 4) | (0xF - step) | sign
    return code.astype(np.uint8)


_ULAW_ENCODE = _ulaw_encode_table()
_ULAW_DECODE = _ulaw_decode_table()
