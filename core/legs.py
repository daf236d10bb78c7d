"""What a participant's attributes say: whose leg it is, and what the bridge's legs alone tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

LEG: Final = "switchroom.leg"
"""Attribute: whose leg a participant is (``Leg``), as ``role:id``. Nobody changes their own."""

Role = Literal[
    "callee",  # the phone that a call was placed to
    "caller",  # the phone that called a number
    "human",  # the phone of a warm transfer's human
    "visitor",  # the browser of a web call
]
_LEG: Final = re.compile(r"(callee|caller|human|visitor):([A-Za-z0-9_-]{1,64})")

LEAVE_METHOD: Final = "switchroom.Leave"
"""RPC method of a leg: hang up and leave the room. Legs without it are removed instead."""
LEAVING: Final = "switchroom.leaving"
"""Attribute of a leg; if not empty, it was asked to leave and does so when speech has ended."""
TAKEN: Final = "switchroom.taken"
"""Attribute of a transfer's human; if not empty, they have accepted the call and hear the room."""
BRIDGE: Final = "switchroom.bridge"
"""Attribute of a leg: the bridge that it belongs to."""
LOST: Final = "switchroom.lost"
"""Attribute of a leg; if not empty, its bridge died and the phone cannot be reached."""


@dataclass(frozen=True, slots=True)
class Leg:
    """Whose leg a participant is."""

    role: Role
    id: str
    """The call's. A caller's: the number's, as its leg is made before its call has a record."""

    @property
    def attributes(self) -> dict[str, str]:
        """For the participant."""
        return {LEG: f"{self.role}:{self.id}"}

    @classmethod
    def read(cls, attributes: Mapping[str, str]) -> Leg | None:
        """None: no leg of a call."""
        found = _LEG.fullmatch(attributes.get(LEG, ""))
        return found and cls(cast(Role, found[1]), found[2])
