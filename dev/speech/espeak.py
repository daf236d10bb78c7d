"""Offline speech synthesis with the espeak-ng library in the espeakng-loader wheel.

espeak-ng keeps its voice and its output in globals, and only one thread may use it at a
time (``speak_lib.h``), hence the lock. Synthesis of a sentence takes about 10 ms, during
which the GIL is free.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import espeakng_loader  # type: ignore[import-untyped]
import numpy as np
import soxr  # type: ignore[import-untyped]

from core.audio import Pcm
from dev.speech.text import spoken_words

# speak_lib.h
_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_EVENT_LIST_TERMINATED = 0
_EVENT_WORD = 1
_PARAM_RATE, _PARAM_PITCH, _PARAM_WORDGAP = 1, 3, 7
_PHONEMES_IPA = 0x02

# Samples below this belong to the pause between words (full scale 32767).
_SILENCE = 150


class SpeechError(Exception):
    """espeak-ng is unusable here, or does not have the voice."""


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice (``en-us``, or with a variant ``en-us+f3``) and its parameters."""

    name: str
    words_per_minute: int = 150
    pitch: int = 50
    word_gap_ms: int = 10


@dataclass(frozen=True)
class Word:
    """One blank-separated token of the text and the position of its sound."""

    word: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Speech:
    """Mono 16-bit samples, and the positions of the text's words in them."""

    pcm: Pcm
    sample_rate: int
    words: tuple[Word, ...]

    @property
    def duration_ms(self) -> float:
        return len(self.pcm) * 1000 / self.sample_rate


# By measurement recognised best over a telephone line, and easy to tell apart.
AGENT_VOICE = Voice("en-us")
CALLER_VOICE = Voice("en-us+f2", words_per_minute=165)


def synthesize(text: str, voice: Voice | str = AGENT_VOICE, sample_rate: int = 16000) -> Speech:
    """Synthesise ``text``; numbers are said as ``normalize`` spells them. No text: 0 samples.

    ``voice`` is a Voice or the name of an espeak-ng voice.

    It blocks for about 10 ms, so call it from a thread. Results are cached, so ``pcm`` is
    read-only. Raise SpeechError for an unknown voice.
    """
    voice = Voice(voice) if isinstance(voice, str) else voice
    return _synthesize(" ".join(text.split()), voice, sample_rate)


@functools.lru_cache(maxsize=512)
def _synthesize(text: str, voice: Voice, sample_rate: int) -> Speech:
    spoken = _speak(text, voice)
    pcm = spoken.pcm
    if spoken.sample_rate != sample_rate:
        pcm = soxr.resample(pcm, spoken.sample_rate, sample_rate)
        pcm.flags.writeable = False
    return Speech(pcm, sample_rate, spoken.words)


@functools.lru_cache(maxsize=512)
def _speak(text: str, voice: Voice) -> Speech:
    """Synthesise at espeak-ng's own rate. The cache repeats the samples; espeak-ng would not."""
    tokens = text.split()
    spoken, token_at = _spell(tokens)
    if not token_at:
        return Speech(np.zeros(0, np.int16), 8000, ())
    pcm, rate, events = _engine().speak(spoken, voice)
    pcm.flags.writeable = False
    words = tuple(
        Word(tokens[index], start * 1000 / rate, end * 1000 / rate)
        for index, start, end in _spans(_token_starts(events, token_at), token_at, pcm)
    )
    return Speech(pcm, rate, words)


def pronounce(word: str, language: str = "en-us") -> list[str]:
    """Return the word's phonemes in IPA, without stress marks."""
    return _engine().phonemes(word, language)


def _spell(tokens: list[str]) -> tuple[str, list[int]]:
    """Return the text to speak, and for each of its characters the index of its token.

    Punctuation at the end of a token stays: espeak turns it into pauses and intonation.
    """
    pieces: list[str] = []
    token_at: list[int] = []
    for index, token in enumerate(tokens):
        words = spoken_words(token)
        if not words:
            continue
        # A space belongs to the token after it: after the end of a clause espeak reports
        # the position of the space as that of the word.
        ending = token[-1] if token[-1] in ".,;:?!" else ""
        piece = " " + " ".join(words) + ending
        pieces.append(piece)
        token_at += [index] * len(piece)
    return "".join(pieces), token_at


def _token_starts(events: Iterable[tuple[int, int]], token_at: list[int]) -> dict[int, int]:
    """Map each token to its first sample, in the order of the text."""
    starts: dict[int, int] = {}
    for position, sample in events:
        starts.setdefault(token_at[min(position, len(token_at) - 1)], sample)
    return starts


def _spans(starts: dict[int, int], token_at: list[int], pcm: Pcm) -> Iterator[tuple[int, int, int]]:
    """Yield (token, first sample, last sample + 1) for every spoken token.

    espeak treats some pairs ("in the") as one word; their sound is divided by their letters.
    """
    letters = Counter(token_at)
    said = list(letters)
    known = list(starts.items())
    for (first, start), following in zip(known, [*known[1:], None], strict=True):
        until, limit = following or (said[-1] + 1, len(pcm))
        loud = np.flatnonzero(np.abs(pcm[start:limit].astype(np.int32)) > _SILENCE)
        if not len(loud):
            continue
        begin, length = start + int(loud[0]), int(loud[-1]) + 1 - int(loud[0])
        group = [token for token in said if first <= token < until]
        total = sum(letters[token] for token in group)
        for token in group:
            end = begin + length * letters[token] // total
            yield token, begin, end
            begin, length, total = end, length - (end - begin), total - letters[token]


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Engine:
    """The only espeak-ng instance of the process."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise SpeechError(f"cannot load espeak-ng: {error}") from error
        data = espeakng_loader.get_data_path().encode()
        self._rate = int(self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data, 0))
        if self._rate <= 0:
            raise SpeechError("espeak-ng did not initialise")
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._lock = threading.Lock()
        self._chunks: list[Pcm] = []
        self._words: list[tuple[int, int]] = []
        # Keeps a reference: the C library holds only a pointer.
        self._callback = _SynthCallback(self._on_audio)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice) -> tuple[Pcm, int, list[tuple[int, int]]]:
        """Return samples, their rate, and (character index, sample) of each word's start."""
        encoded = text.encode()
        with self._lock:
            self._select(voice.name)
            for parameter, value in (
                (_PARAM_RATE, voice.words_per_minute),
                (_PARAM_PITCH, voice.pitch),
                (_PARAM_WORDGAP, voice.word_gap_ms // 10),
            ):
                self._library.espeak_SetParameter(parameter, value, 0)
            # Voices flutter at random; a fixed seed makes runs repeatable.
            self._library.espeak_ng_SetRandSeed(1)
            self._chunks, self._words = [], []
            status = self._library.espeak_Synth(
                encoded, len(encoded) + 1, 0, 0, 0, _CHARS_UTF8, None, None
            )
            chunks, words = self._chunks, self._words
        if status != 0:
            raise SpeechError(f"espeak-ng refused the text (status {status})")
        return np.concatenate([np.zeros(0, np.int16), *chunks]), self._rate, words

    def phonemes(self, text: str, language: str) -> list[str]:
        separator = ord("_") << 8
        with self._lock:
            self._select(language)
            pointer = ctypes.c_char_p(text.encode())
            found: list[str] = []
            while pointer.value:
                answer: bytes | None = self._library.espeak_TextToPhonemes(
                    ctypes.byref(pointer), _CHARS_UTF8, separator | _PHONEMES_IPA
                )
                found.append((answer or b"").decode())
        marks = str.maketrans("", "", "ˈˌ")
        return [
            phoneme
            for part in "_".join(found).translate(marks).split()
            for phoneme in part.split("_")
            if phoneme
        ]

    def _select(self, name: str) -> None:
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise SpeechError(f"espeak-ng has no voice {name!r}")

    def _on_audio(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            if events[index].type == _EVENT_WORD:
                self._words.append((events[index].text_position - 1, events[index].sample))
            index += 1
        return 0


_engine_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _create_engine() -> _Engine:
    return _Engine()


def _engine() -> _Engine:
    # With the cache alone, two threads could initialise the library twice.
    with _engine_lock:
        return _create_engine()
