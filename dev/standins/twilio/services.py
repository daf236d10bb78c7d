"""What every call needs of the server that it runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dev.standins.twilio.callees import Callees
from dev.standins.twilio.errors import Alert
from dev.standins.twilio.hosts import Hosts
from dev.standins.twilio.media.ticker import Ticker
from dev.standins.twilio.webhooks import Webhooks

if TYPE_CHECKING:
    from dev.standins.twilio.call import Call


@dataclass
class Services:
    hosts: Hosts
    webhooks: Webhooks
    ticker: Ticker
    callees: Callees
    owns: Callable[[str, str], bool]
    """Whether an account may call from a number."""
    alerts: list[Alert] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    """All calls by their SIDs, those of <Dial> too."""
