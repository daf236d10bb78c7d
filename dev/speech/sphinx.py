"""Text from speech, offline: pocketsphinx with a grammar of the phrases that may be said.

Free dictation is beyond its model at telephone quality; telling a few hundred
known phrases apart is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pocketsphinx  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]

from core.audio import Pcm
from dev.speech.espeak import pronounce
from dev.speech.text import normalize

_RATE = 16000
_FRAME_MS = 10.0

# How a grammar weighs, as probabilities; tuned on telephone audio (docs/benchmarks.md).
_NEXT_PHRASE = 1e-3

_PADDING_S = 0.2
_LEVEL = 0.08  # target RMS of full scale


@dataclass(frozen=True)
class RecognizedWord:
    word: str
    start_ms: float
    end_ms: float
    confidence: float


@dataclass(frozen=True)
class Recognition:
    """``text`` is in the phrase's own spelling; empty when no phrase was heard."""

    text: str
    confidence: float
    words: tuple[RecognizedWord, ...]


NOTHING = Recognition("", 0.0, ())


class Recognizer:
    """Hears any sequence of the given phrases, or of the clauses they consist of.

    Not thread-safe, and decoding holds Python's lock (about 2 % of the audio's
    duration): use RecognizerPool where a loop must not stall.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        self._clauses = _clauses(phrases)
        self._decoder = pocketsphinx.Decoder(
            lm=None,
            samprate=float(_RATE),
            loglevel="FATAL",
            bestpath=False,
            beam=1e-60,
            pbeam=1e-60,
            wbeam=1e-40,
        )
        self._active = bool(self._clauses)
        if not self._active:
            return
        for word in sorted({word for clause in self._clauses for word in clause}):
            if self._decoder.lookup_word(word) is None:
                self._decoder.add_word(word, " ".join(_arpabet(word)), True)
        self._decoder.add_jsgf_string("phrases", _jsgf(self._clauses))
        self._decoder.activate_search("phrases")

    def recognize(self, pcm: Pcm, sample_rate: int, *, partial: bool = False) -> Recognition:
        """What was said in ``pcm`` (mono). ``partial``: the speech goes on after its end."""
        if not self._active or not len(pcm):
            return NOTHING
        decoder = self._decoder
        decoder.start_utt()
        decoder.process_raw(_prepare(pcm, sample_rate), no_search=False, full_utt=True)
        if partial:
            heard = self._read()
            decoder.end_utt()
            return heard
        decoder.end_utt()
        return self._read()

    def _read(self) -> Recognition:
        hypothesis = self._decoder.hyp()
        if hypothesis is None or not hypothesis.hypstr:
            return NOTHING
        words: list[RecognizedWord] = []
        for segment in self._decoder.seg():
            if segment.word.startswith(("<", "[", "+", "(")):
                continue
            words.append(
                RecognizedWord(
                    re.sub(r"\(\d+\)$", "", segment.word),
                    max(0.0, segment.start_frame * _FRAME_MS - _PADDING_S * 1000),
                    max(0.0, (segment.end_frame + 1) * _FRAME_MS - _PADDING_S * 1000),
                    1.0,
                )
            )
        text = self._spelling([word.word for word in words])
        return Recognition(text, 1.0, tuple(words)) if words else NOTHING

    def _spelling(self, words: list[str]) -> str:
        """The heard words as the phrases write them: the fewest clauses that make them up."""
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
    """Every phrase and every clause of it: words → how it was written.

    A talker pauses at punctuation, so a clause is what an endpointer may cut out.
    """
    found: dict[tuple[str, ...], str] = {}
    for phrase in phrases:
        for text in (phrase, *re.split(r"(?<=[,.;:?!])\s+", phrase)):
            words = tuple(normalize(text).split())
            if words:
                found.setdefault(words, text.strip())
    return found


def _jsgf(clauses: Iterable[tuple[str, ...]]) -> str:
    phrases = " | ".join(" ".join(words) for words in clauses)
    return (
        "#JSGF V1.0;\ngrammar phrases;\n"
        f"public <speech> = /{1 - _NEXT_PHRASE}/ <phrase> | /{_NEXT_PHRASE}/ <phrase> <speech>;\n"
        f"<phrase> = {phrases};\n"
    )


def _prepare(pcm: Pcm, sample_rate: int) -> bytes:
    """16 kHz at one level, with quiet noise around: digital silence upsets the model's norms."""
    samples: npt.NDArray[np.float64] = pcm.astype(np.float64) / 32768
    if sample_rate != _RATE:
        samples = soxr.resample(samples, sample_rate, _RATE)
    level = math.sqrt(float(np.mean(np.square(samples)))) or 1.0
    samples = np.pad(samples * (_LEVEL / level), int(_PADDING_S * _RATE))
    # The same noise every time: one audio, one answer.
    samples = samples + np.random.default_rng(0).normal(0, 3e-4, len(samples))
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


@lru_cache(maxsize=4096)
def _arpabet(word: str) -> tuple[str, ...]:
    """A pronunciation for a word that the dictionary lacks, from espeak-ng's rules."""
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
