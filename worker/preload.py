"""Imported once in the process that job processes are forked from, so that all share it.

livekit-agents would load both of its local models there; the turn detector's
weights (250 MB) only when they are used, see ``main``.
"""

from __future__ import annotations

import livekit.local_inference

import worker.call  # noqa: F401

livekit.local_inference.init_vad()
