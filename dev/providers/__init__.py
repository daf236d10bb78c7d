"""Local servers for Deepgram, OpenAI and Cartesia on one port, with offline speech.

The plugins reach them through their ``base_url`` and see no other difference to the real
ones. ``python -m dev.providers`` runs them; ``Providers`` runs them in process.
"""

from dev.providers.control import (
    Cartesia,
    Control,
    Deepgram,
    Fault,
    OpenAI,
    Pace,
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
    "Pace",
    "Providers",
    "Rule",
    "Script",
    "ToolCall",
    "VoiceChoice",
]
