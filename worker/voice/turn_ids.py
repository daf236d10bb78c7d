"""The id of a caller's turn, made of that of livekit-agents' message, so that one tells the other.

An agent that takes over a call gives the message of a former agent's turn its id again.
"""

from __future__ import annotations

from livekit.agents.llm import ChatMessage

_TURN, _ITEM = "turn_", "item_"


def turn_id_of(message: ChatMessage) -> str:
    """Return the id of the turn that is this message of the caller's."""
    return _TURN + message.id.removeprefix(_ITEM)


def message_id_of(turn_id: str) -> str:
    """Return the id of the message that ``turn_id_of`` makes this of."""
    return _ITEM + turn_id.removeprefix(_TURN)
