"""G.711 companding between 16-bit PCM and the telephone network's two 8-bit codes.

The formulas are those of ITU-T G.711 tables 1 and 2, as in the ITU's reference code
(G.191, ``g711.c``). They fill look-up tables once, so that a frame costs one indexing
operation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.audio import Pcm


def ulaw_encode(pcm: Pcm) -> bytes:
    """Return one µ-law byte per 16-bit sample (any sample rate; telephony uses 8000 Hz)."""
    return _ULAW_ENCODE[pcm.view(np.uint16)].tobytes()


def ulaw_decode(data: bytes) -> Pcm:
    """Return one 16-bit sample per µ-law byte."""
    return _ULAW_DECODE[np.frombuffer(data, np.uint8)]


def alaw_encode(pcm: Pcm) -> bytes:
    """Return one A-law byte (even bits inverted, as on the wire) per 16-bit sample."""
    return _ALAW_ENCODE[pcm.view(np.uint16)].tobytes()


def alaw_decode(data: bytes) -> Pcm:
    """Return one 16-bit sample per A-law byte."""
    return _ALAW_DECODE[np.frombuffer(data, np.uint8)]


def _magnitude(bits: int) -> npt.NDArray[np.int64]:
    """Return the magnitude in ``bits`` bits of every int16, in the order of its bit pattern.

    Negative values use ones' complement: G.711 has no code for -0 and is symmetric
    around -½.
    """
    sample = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int64)
    magnitude: npt.NDArray[np.int64] = np.where(sample < 0, ~sample, sample) >> (15 - bits)
    return magnitude


def _sign_bit() -> npt.NDArray[np.int64]:
    return np.where(np.arange(65536) < 32768, 0x80, 0)


def _ulaw_encode_table() -> npt.NDArray[np.uint8]:
    magnitude = np.minimum(_magnitude(13) + 33, 0x1FFF)
    segment = np.floor(np.log2(magnitude)).astype(np.int64) - 5
    step = (magnitude >> (segment + 1)) & 0xF
    code = ((7 - segment) << 4) | (0xF - step)
    return (code | _sign_bit()).astype(np.uint8)


def _ulaw_decode_table() -> npt.NDArray[np.int16]:
    code = np.arange(256)
    inverted = ~code & 0x7F
    exponent, mantissa = inverted >> 4, inverted & 0xF
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


def _alaw_encode_table() -> npt.NDArray[np.uint8]:
    magnitude = _magnitude(11)
    exponent = np.maximum(np.floor(np.log2(np.maximum(magnitude, 1))).astype(np.int64) - 3, 0)
    mantissa = (magnitude >> np.maximum(exponent - 1, 0)) & 0xF
    code: npt.NDArray[np.int64] = ((exponent << 4) | mantissa | _sign_bit()) ^ 0x55
    return code.astype(np.uint8)


def _alaw_decode_table() -> npt.NDArray[np.int16]:
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code & 0x70) >> 4, code & 0xF
    linear = (mantissa << 4) + 8
    magnitude = np.where(exponent > 0, (linear + 0x100) << np.maximum(exponent - 1, 0), linear)
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


_ULAW_ENCODE = _ulaw_encode_table()
_ULAW_DECODE = _ulaw_decode_table()
_ALAW_ENCODE = _alaw_encode_table()
_ALAW_DECODE = _alaw_decode_table()
