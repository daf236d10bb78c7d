"""What this gateway uploads of its machine's spool, reported as a worker would."""

from __future__ import annotations

from core.errors import AppError, Unprocessable
from core.models import CallEvent
from gateway.calls.timeline import Timeline
from gateway.recordings.service import RecordingService
from recordings.upload import Later, Never, Report


def reporter(service: RecordingService, timeline: Timeline) -> Report:
    """Return the report of ``recordings.upload``: it folds the event, and appends it."""

    async def report(call_id: str, event: CallEvent, /) -> None:
        try:
            await service.fold(call_id, [event])
            stored = await timeline.append(call_id, [event], "worker")
        except Unprocessable as error:
            raise Never(error.message) from None
        except AppError as error:
            raise Later(error.code) from None
        if stored is None:
            raise Never("there is no such call")

    return report
