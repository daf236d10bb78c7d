"""The fields with which a request asks for the recording of its call, on every way in."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from core.recordings.config import switchable
from core.shapes import Model


class Switch(Model):
    model_config = ConfigDict(extra="forbid")

    enabled: StrictBool | None = None


class AsksForRecording(BaseModel):
    """Part of the body of each request that creates a call."""

    record: StrictBool | None = Field(
        None,
        description="true: record the call, if the agent's recording is enabled; else the request "
        "is refused (RECORDING_NOT_ENABLED). Default: false.",
    )
    recording: Annotated[Switch, switchable(Switch)] | None = Field(
        None, description="Another form of record: true, false or an object."
    )
    disable_recording: StrictBool | None = Field(
        None, description="true: do not record the call, whatever the other fields say."
    )

    @property
    def wants_recording(self) -> bool | None:
        """Return False if any field forbids a recording, else True if one asks for it."""
        stated = {self.record, self.recording.enabled if self.recording else None}
        if self.disable_recording or False in stated:
            return False
        return True if True in stated else None
