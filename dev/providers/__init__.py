"""Deepgram, OpenAI and Cartesia on one local port, with offline speech behind them.

The plugins reach them through their own ``base_url``; nothing else tells them from the
real ones. ``python -m dev.providers`` runs them, ``Providers`` does so in process.
"""

from dev.providers.control import (
    Cartesia,
    Control,
    Deepgram,
    Fault,
    OpenAI,
    Rule,
    Script,
    ToolCall,
    VoiceChoice,
)
from dev.providers.server import Providers

__all__ = [
    "Cartesia",
    "Control",
    "Deepgram",
    "Fault",
    "OpenAI",
    "Providers",
    "Rule",
    "Script",
    "ToolCall",
    "VoiceChoice",
]
