"""Faults of the network between caller and server, with a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """The clock and the losses of a call's media. The defaults are a perfect network."""

    drift_ppm: float = 0.0
    """How much faster the call's clock runs than this machine's."""
    loss: float = 0.0
    """Percent of the caller's media messages that are not sent; their numbers stay used."""
    duplicates: float = 0.0
    """Percent of the caller's media messages that are sent twice."""
    reordering: float = 0.0
    """Percent of the caller's media messages that arrive after the one behind them."""
    seed: int = 0


class Wire:
    """Applies a network's losses to messages that are complete and numbered."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._random = random.Random(network.seed)
        self._perfect = not (network.loss or network.duplicates or network.reordering)
        self._late: str | None = None

    def carry(self, message: str) -> Iterator[str]:
        """Yield what arrives now."""
        if self._perfect:
            yield message
            return
        chance = self._random.uniform(0, 100)
        network = self._network
        if chance < network.loss:
            return
        chance -= network.loss
        if self._late is None and 0 <= chance - network.duplicates < network.reordering:
            self._late = message
            return
        yield message
        if chance < network.duplicates:
            yield message
        if self._late is not None:
            late, self._late = self._late, None
            yield late
