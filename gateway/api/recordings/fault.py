"""The errors that several routes of recordings may answer with; see gateway.api.faults."""

from __future__ import annotations

from gateway.api import faults
from gateway.http.route import Fault, Faults

NO_RECORDING: Fault = (404, "RECORDING_NOT_FOUND")
NOT_READY: Fault = (425, "RECORDING_NOT_READY")
DELETED: Fault = (410, "RECORDING_DELETED")
AWAY: Fault = (503, "RECORDINGS_UNAVAILABLE")
OPENING: Faults = (faults.NO_CALL, NO_RECORDING, NOT_READY, DELETED, AWAY, faults.STORE)
DECODING: Faults = ((503, "RECORDINGS_BUSY"),)
