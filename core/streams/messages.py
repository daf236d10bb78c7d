"""Messages between the gateway and a stream worker about sessions, which are calls without a room.

The gateway opens a WebSocket to ``{worker's address}/sessions/{call id}``, authorized by a token
for that session (core.tokens), and sends one Attach. Then it passes the client's frames in both
directions as they are.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from core.models import Model

GRACE_S: Final = 30.0
"""A session outlives its socket for so long, and continues on another one."""

LOST: Final = 4000
"""WebSocket close code, from the gateway to the worker: the client's socket broke."""

TAKEN_OVER: Final = 4009
"""WebSocket close code, from the gateway to the worker: another agent has the session now. This one
leaves without a word, and changes nothing any more."""

LEAVES: Final = 4011
"""WebSocket close code, from the worker to the gateway: this agent leaves, and does not know that
the call is over. If it is not, another agent is wanted."""

GONE: Final = 4404
"""WebSocket close code: the session does not exist any more."""

REPLACED: Final = 4409
"""WebSocket close code: another socket of the session took over."""


class Format(Model):
    """One direction of a socket's audio, mono."""

    encoding: Literal["pcm_s16le", "audio/x-mulaw"] = "pcm_s16le"
    sample_rate: Literal[8000, 16000] = 16000


class TwilioAttach(Model):
    """Attach a Twilio Media Stream; the gateway has read its ``connected`` and ``start``."""

    kind: Literal["twilio"] = "twilio"
    token: str = ""
    """For the call's events (core.tokens.TokenIssuer.for_call)."""
    epoch: int = 0
    """Of the token: which of the call's agents this is (core.recovery)."""
    stream_sid: str
    resume: bool = False
    """The agent's session must exist. Otherwise it must be new."""
    moved: bool = False
    """The far end's socket was another agent's until now, and has audio of that one to play."""
    twilio: dict[str, Any] = Field(default_factory=dict)
    """Facts for the timeline: ``callSid``, ``accountSid``, ``streamSid``."""


class SocketAttach(Model):
    """Attach a client's socket; the gateway has read its first message."""

    kind: Literal["socket"] = "socket"
    token: str = ""
    epoch: int = 0
    input: Format = Field(default_factory=Format)
    output: Format = Field(default_factory=Format)
    resume_token: str
    """For the client, in ``ready``."""
    resume: bool = False
    moved: bool = False
    """As Twilio's. The client has had its ``ready``."""
    last_seq: int = 0
    """The last server event that the client has seen; later ones are sent again."""


Attach = Annotated[TwilioAttach | SocketAttach, Field(discriminator="kind")]
