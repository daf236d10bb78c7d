"""Offline speech recognition: pocketsphinx with a grammar of the expected phrases.

At telephone quality its model cannot do free dictation, but it can tell a few hundred
known phrases apart.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pocketsphinx  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]

from core.audio import Pcm
from dev.speech.espeak import pronounce
from dev.speech.text import normalize

_RATE = 16000
_TELEPHONE_RATE = 8000
_FRAME_MS = 10.0

# Tuned on µ-law speech of several espeak-ng voices. The noise matters most: the model
# was trained on wide-band microphones, and without noise it takes the empty band above
# 4 kHz and the digital silence for features of speech.
_LEVEL = 0.08  # RMS, of full scale
_NOISE = 0.012  # RMS, of full scale, if it filled the whole band
_LINE_TOP_HZ = 3800.0
_PADDING_S = 0.2
_BEAMS = {"beam": 1e-50, "pbeam": 1e-50, "wbeam": 1e-35}
_NEXT_PHRASE = 1e-3  # probability that another phrase follows without a pause

# The mean log score of a frame (0: the best match in the model). Phrases of the grammar
# have a median of -2.2 and at worst -4.0, other sentences at most -4.1.
_WORST_SCORE = -4.0
_WORST_SCORE_OF_SEVERAL = -3.6  # a sequence of phrases fits by chance more often
_PASSED_OVER = 10  # loud frames that may count as noise between the words
_LOUD = 0.03  # RMS, of full scale


@dataclass(frozen=True)
class RecognizedWord:
    word: str
    start_ms: float
    end_ms: float
    confidence: float


@dataclass(frozen=True)
class Recognition:
    """``text`` has the phrase's own spelling; it is empty if no phrase was recognised."""

    text: str
    confidence: float
    words: tuple[RecognizedWord, ...]


NOTHING = Recognition("", 0.0, ())

_ONE, _SEVERAL = "one", "several"
_FILLERS = ("<", "[", "+", "(")

# (noise within the telephone band as a share of _NOISE, grammar, worst score), tried in turn.
# Little noise tells digits apart; more noise helps with slurred phrases.
_ATTEMPTS = (
    (0.25, _ONE, _WORST_SCORE),
    (1.0, _ONE, _WORST_SCORE),
    (1.0, _SEVERAL, _WORST_SCORE_OF_SEVERAL),
)

_Samples: TypeAlias = npt.NDArray[np.float64]


class Recognizer:
    """Recognises one of the given phrases, a clause of one, or several of them in a row.

    It is not thread-safe, and decoding holds the GIL for about 3 % of the audio's duration:
    use RecognizerPool where an event loop must not stall. Loading the model takes 0.2 s,
    ``expect`` a few milliseconds.
    """

    def __init__(self, phrases: Iterable[str] = ()) -> None:
        self._decoder = pocketsphinx.Decoder(
            lm=None, samprate=float(_RATE), loglevel="FATAL", bestpath=False, **_BEAMS
        )
        self._clauses: dict[tuple[str, ...], str] = {}
        self.expect(phrases)

    def expect(self, phrases: Iterable[str]) -> None:
        """Set the phrases to recognise."""
        self._clauses = _clauses(phrases)
        if not self._clauses:
            return
        for word in sorted({word for clause in self._clauses for word in clause}):
            if self._decoder.lookup_word(word) is None:
                self._decoder.add_word(word, " ".join(_arpabet(word)), True)
        for search in _ONE, _SEVERAL:
            self._decoder.add_jsgf_string(search, _jsgf(self._clauses, search))

    def recognize(self, pcm: Pcm, sample_rate: int, *, partial: bool = False) -> Recognition:
        """Recognise ``pcm`` (mono, one stretch of speech with little silence around it).

        ``partial``: the speech continues after the last sample; return its first words.
        """
        if not self._clauses or not np.any(pcm):
            return NOTHING
        if partial:
            # No silence is appended: the last word may be incomplete.
            speech = _telephone(pcm, sample_rate, padding_after_s=0)
            return self._decode(speech, *_ATTEMPTS[1], partial=True)
        speech = _telephone(pcm, sample_rate)
        for attempt in _ATTEMPTS:
            heard = self._decode(speech, *attempt)
            if heard.text:
                return heard
        return NOTHING

    def _decode(
        self, speech: _Samples, in_band: float, search: str, worst: float, *, partial: bool = False
    ) -> Recognition:
        decoder = self._decoder
        decoder.activate_search(search)
        decoder.start_utt()
        decoder.process_raw(_with_noise(speech, in_band), no_search=False, full_utt=True)
        loud = _loud_frames(speech)
        if partial:
            heard = self._read(worst, loud, partial=True)
            decoder.end_utt()
            return heard
        decoder.end_utt()
        return self._read(worst, loud)

    def _read(
        self, worst: float, loud: npt.NDArray[np.bool_], *, partial: bool = False
    ) -> Recognition:
        """Return the decoder's best path; nothing if it is poor or skips loud frames as noise."""
        if self._decoder.hyp() is None:
            return NOTHING
        last_frame = 0
        words: list[RecognizedWord] = []
        score, frames = 0.0, 0
        for segment in self._decoder.seg():
            if segment.word.startswith(_FILLERS):
                continue
            loud[segment.start_frame : segment.end_frame + 1] = False
            last_frame = segment.end_frame
            length = segment.end_frame - segment.start_frame + 1
            log_score = _log_score(segment.ascore)
            score, frames = score + log_score, frames + length
            words.append(
                RecognizedWord(
                    re.sub(r"\(\d+\)$", "", segment.word),  # "read(2)": a second pronunciation
                    max(0.0, segment.start_frame * _FRAME_MS - _PADDING_S * 1000),
                    max(0.0, (segment.end_frame + 1) * _FRAME_MS - _PADDING_S * 1000),
                    _confidence(log_score / length, worst),
                )
            )
        passed_over = np.count_nonzero(loud[:last_frame] if partial else loud)
        if not words or score / frames < worst or passed_over > _PASSED_OVER:
            return NOTHING
        text = self._spelling([word.word for word in words])
        return Recognition(text, _confidence(score / frames, worst), tuple(words))

    def _spelling(self, words: list[str]) -> str:
        """Return the words in the phrases' spelling: the fewest clauses that make them up."""
        best: list[tuple[int, str] | None] = [(0, ""), *[None] * len(words)]
        for end in range(1, len(words) + 1):
            for start in range(end):
                before, clause = best[start], self._clauses.get(tuple(words[start:end]))
                if before is None or clause is None:
                    continue
                found = (before[0] + 1, f"{before[1]} {clause}".strip())
                current = best[end]
                if current is None or found[0] < current[0]:
                    best[end] = found
        last = best[-1]
        return last[1] if last else " ".join(words)


def _clauses(phrases: Iterable[str]) -> dict[tuple[str, ...], str]:
    """Map the words of every phrase, and of every clause of it, to its spelling.

    Speakers pause at punctuation, so an endpointer may cut out a clause.
    """
    found: dict[tuple[str, ...], str] = {}
    for phrase in phrases:
        for text in (phrase, *re.split(r"(?<=[,.;:?!])\s+", phrase)):
            words = tuple(normalize(text).split())
            if words:
                found.setdefault(words, text.strip())
    return found


def _jsgf(clauses: Iterable[tuple[str, ...]], name: str) -> str:
    phrases = " | ".join(" ".join(words) for words in clauses)
    speech = "<phrase>"
    if name == _SEVERAL:
        speech = f"/{1 - _NEXT_PHRASE}/ <phrase> | /{_NEXT_PHRASE}/ <phrase> <speech>"
    return f"#JSGF V1.0;\ngrammar {name};\npublic <speech> = {speech};\n<phrase> = {phrases};\n"


def _log_score(score: float) -> float:
    """Return the log, times 1000, of a segment's score (a power of the decoder's log base)."""
    return 1000 * math.log(max(score, sys.float_info.min))


def _confidence(score: float, worst: float) -> float:
    """Return 0..1; one half at the score below which a result is rejected."""
    return round(1 / (1 + math.exp(-2 * (score - worst))), 4)


def _telephone(pcm: Pcm, sample_rate: int, padding_after_s: float = _PADDING_S) -> _Samples:
    """Return 16 kHz samples in the telephone band, at a fixed level, padded with silence.

    A 24 kHz voice and an 8 kHz line give the same result.
    """
    samples: _Samples = pcm.astype(np.float64) / 32768
    if sample_rate != _TELEPHONE_RATE:
        samples = soxr.resample(samples, sample_rate, _TELEPHONE_RATE)
    samples = soxr.resample(samples, _TELEPHONE_RATE, _RATE)
    level = math.sqrt(float(np.mean(np.square(samples)))) or 1.0
    padding = (int(_PADDING_S * _RATE), int(padding_after_s * _RATE))
    return np.pad(samples * (_LEVEL / level), padding)


def _with_noise(samples: _Samples, in_band: float) -> bytes:
    # A fixed seed, so that the same audio always has the same result.
    noise = np.random.default_rng(0).normal(0, _NOISE, len(samples))
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(len(noise), 1 / _RATE) < _LINE_TOP_HZ] *= in_band
    noisy = samples + np.fft.irfft(spectrum, len(noise))
    return (np.clip(noisy, -1, 1) * 32767).astype("<i2").tobytes()


def _loud_frames(samples: _Samples) -> npt.NDArray[np.bool_]:
    """Return for each 10 ms frame whether it is loud enough for speech."""
    frame = int(_RATE * _FRAME_MS / 1000)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    loud: npt.NDArray[np.bool_] = np.sqrt(np.mean(np.square(frames), axis=1)) > _LOUD
    return loud


@lru_cache(maxsize=4096)
def _arpabet(word: str) -> tuple[str, ...]:
    """Return a pronunciation by espeak-ng's rules, for a word that is not in the dictionary."""
    sounds = [sound for phoneme in pronounce(word) for sound in _ipa_to_arpabet(phoneme)]
    return tuple(sounds) or ("AH",)


def _ipa_to_arpabet(phoneme: str) -> list[str]:
    found: list[str] = []
    rest = phoneme.replace("ː", "").replace("\u0361", "")
    while rest:
        for size in (2, 1):
            if rest[:size] in _IPA:
                found += _IPA[rest[:size]].split()
                rest = rest[size:]
                break
        else:
            rest = rest[1:]  # a mark without a sound of its own
    return found


_IPA = {
    "aɪ": "AY", "aʊ": "AW", "eɪ": "EY", "oʊ": "OW", "ɔɪ": "OY", "tʃ": "CH", "dʒ": "JH",
    "əl": "AH L", "ɑ": "AA", "a": "AA", "æ": "AE", "ʌ": "AH", "ə": "AH", "ɐ": "AH", "ɔ": "AO",
    "o": "AO", "ɛ": "EH", "e": "EH", "ɜ": "ER", "ɚ": "ER", "ɪ": "IH", "ᵻ": "IH", "i": "IY",
    "ʊ": "UH", "u": "UW", "b": "B", "d": "D", "ð": "DH", "f": "F", "ɡ": "G", "g": "G", "h": "HH",
    "k": "K", "l": "L", "m": "M", "n": "N", "ŋ": "NG", "p": "P", "ɹ": "R", "r": "R", "s": "S",
    "ʃ": "SH", "t": "T", "ɾ": "T", "ʔ": "T", "θ": "TH", "v": "V", "w": "W", "j": "Y", "z": "Z",
    "ʒ": "ZH", "x": "K",
}  # fmt: skip
