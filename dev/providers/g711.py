"""G.711's A-law; ``core.audio`` has µ-law.

The formulas are those of ITU-T G.711 table 1, as in the ITU's reference code (G.191,
``g711.c``). They fill look-up tables once, so that a frame costs one indexing operation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.audio import Pcm


def alaw_encode(pcm: Pcm) -> bytes:
    """Return one A-law byte (even bits inverted, as on the wire) per 16-bit sample."""
    return _ALAW_ENCODE[pcm.view(np.uint16)].tobytes()


def alaw_decode(data: bytes) -> Pcm:
    """Return one 16-bit sample per A-law byte."""
    return _ALAW_DECODE[np.frombuffer(data, np.uint8)]


def _alaw_encode_table() -> npt.NDArray[np.uint8]:
    """The code of every int16, in the order of its bit pattern.

    Negative values use ones' complement: G.711 has no code for -0 and is symmetric around -½.
    """
    sample = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int64)
    magnitude = np.where(sample < 0, ~sample, sample) >> 4
    exponent = np.maximum(np.floor(np.log2(np.maximum(magnitude, 1))).astype(np.int64) - 3, 0)
    mantissa = (magnitude >> np.maximum(exponent - 1, 0)) & 0xF
    sign = np.where(sample < 0, 0, 0x80)
    code: npt.NDArray[np.int64] = ((exponent << 4) | mantissa | sign) ^ 0x55
    return code.astype(np.uint8)


def _alaw_decode_table() -> npt.NDArray[np.int16]:
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code & 0x70) >> 4, code & 0xF
    linear = (mantissa << 4) + 8
    magnitude = np.where(exponent > 0, (linear + 0x100) << np.maximum(exponent - 1, 0), linear)
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


_ALAW_ENCODE = _alaw_encode_table()
_ALAW_DECODE = _alaw_decode_table()
