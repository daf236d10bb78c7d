"""Offline speech for laptops and tests: synthesis (espeak-ng), recognition (pocketsphinx)."""

from dev.speech.espeak import (
    AGENT_VOICE,
    CALLER_VOICE,
    Speech,
    SpeechError,
    Voice,
    Word,
    synthesize,
)
from dev.speech.pool import RecognizerPool
from dev.speech.sphinx import Recognition, RecognizedWord, Recognizer
from dev.speech.text import normalize

__all__ = [
    "AGENT_VOICE",
    "CALLER_VOICE",
    "Recognition",
    "RecognizedWord",
    "Recognizer",
    "RecognizerPool",
    "Speech",
    "SpeechError",
    "Voice",
    "Word",
    "normalize",
    "synthesize",
]
