"""Speech from text, offline: the espeak-ng library that the espeakng-loader wheel carries.

espeak-ng keeps its voice and its output in globals and has to be used by one
thread at a time (``speak_lib.h``), hence the one lock. Speaking a sentence takes
about 10 ms, during which Python's own lock is free.
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

# Samples below this are the pause between words, not their sound (full scale 32767).
_SILENCE = 150


class SpeechError(Exception):
    """espeak-ng is unusable here or refused a voice."""


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice (``en-us``, with a variant as in ``en-us+f3``) and how it speaks."""

    name: str
    words_per_minute: int = 150
    pitch: int = 50
    word_gap_ms: int = 10


@dataclass(frozen=True)
class Word:
    """One blank-separated token of the text and where its sound is."""

    word: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Speech:
    """Mono 16-bit samples, and the text's words with their true places in them."""

    pcm: Pcm
    sample_rate: int
    words: tuple[Word, ...]

    @property
    def duration_ms(self) -> float:
        return len(self.pcm) * 1000 / self.sample_rate


# Measured to be recognised best through a telephone line, and easily told apart.
AGENT_VOICE = Voice("en-us")
CALLER_VOICE = Voice("en-us+f2", words_per_minute=165)


def synthesize(text: str, voice: Voice | str = AGENT_VOICE, sample_rate: int = 16000) -> Speech:
    """Speak ``text``; numbers are said as ``normalize`` spells them. Empty text is 0 samples.

    ``voice`` is a Voice or the name of an espeak-ng voice.

    Blocking for about 10 ms (call it from a thread); results are cached, so do not
    write into ``pcm`` (it is read-only). Raises SpeechError for an unknown voice.
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
    """At espeak-ng's own rate. The same samples every time: it never says a text twice alike."""
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
    """The word's sounds in IPA, one string a phoneme, stress marks removed."""
    return _engine().phonemes(word, language)


def _spell(tokens: list[str]) -> tuple[str, list[int]]:
    """The text to speak, and for each of its characters the token it comes from.

    Punctuation stays where it ends a token: espeak turns it into pauses and melody.
    """
    pieces: list[str] = []
    token_at: list[int] = []
    for index, token in enumerate(tokens):
        words = spoken_words(token)
        if not words:
            continue
        # A space belongs to the token after it: where espeak reports a word's
        # position after a clause's end, it is that of the space.
        ending = token[-1] if token[-1] in ".,;:?!" else ""
        piece = " " + " ".join(words) + ending
        pieces.append(piece)
        token_at += [index] * len(piece)
    return "".join(pieces), token_at


def _token_starts(events: Iterable[tuple[int, int]], token_at: list[int]) -> dict[int, int]:
    """Token → its first sample, in the order of the text."""
    starts: dict[int, int] = {}
    for position, sample in events:
        starts.setdefault(token_at[min(position, len(token_at) - 1)], sample)
    return starts


def _spans(starts: dict[int, int], token_at: list[int], pcm: Pcm) -> Iterator[tuple[int, int, int]]:
    """(token, first sample, last sample + 1) of every token that is said.

    Some pairs ("in the") are one word to espeak; they share its sound by their letters.
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
    """The process's one espeak-ng."""

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
        # Kept referenced: the C side holds only a bare pointer to it.
        self._callback = _SynthCallback(self._on_audio)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice) -> tuple[Pcm, int, list[tuple[int, int]]]:
        """Samples, their rate, and (character index, sample) of each word's start."""
        encoded = text.encode()
        with self._lock:
            self._select(voice.name)
            for parameter, value in (
                (_PARAM_RATE, voice.words_per_minute),
                (_PARAM_PITCH, voice.pitch),
                (_PARAM_WORDGAP, voice.word_gap_ms // 10),
            ):
                self._library.espeak_SetParameter(parameter, value, 0)
            # Voices flutter at random: not so here, or a run could not be repeated.
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
    # The cache alone would let two first callers initialise the library twice.
    with _engine_lock:
        return _create_engine()
