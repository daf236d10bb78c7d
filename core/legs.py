"""What a phone's leg in a room and its room's others tell each other. Only the bridge's legs do."""

from __future__ import annotations

from typing import Final

LEAVE_METHOD: Final = "switchroom.Leave"
"""RPC method of a leg: hang up, and leave: the end that a removal is, for all others."""
LEAVING: Final = "switchroom.leaving"
"""Attribute of a leg, not empty: it was asked to leave, and does so when nobody speaks any more."""
TAKEN: Final = "switchroom.taken"
"""Attribute of a transfer's human, not empty: it has taken the call, and is kept apart no more."""
BRIDGE: Final = "switchroom.bridge"
"""Attribute of a leg: which bridge it belongs to."""
LOST: Final = "switchroom.lost"
"""Attribute of a leg, not empty: its bridge died, and the phone is out of reach."""
