"""Rules for an agent's recordings that depend on the tenant and the settings."""

from __future__ import annotations

from core.errors import Detail
from core.models import AgentConfig
from core.recordings.config import Region, TenantRecordings
from core.settings import Settings

_NOBODY = TenantRecordings()


def region_of(config: AgentConfig, tenant: TenantRecordings = _NOBODY) -> Region | None:
    """Return where the agent's recordings are stored; None: in the store without a region.

    The tenant's region prevails, also over an agent that is older than the tenant's entry.
    """
    return tenant.region or config.region


def faults_of(
    config: AgentConfig, settings: Settings, tenant: TenantRecordings = _NOBODY
) -> list[Detail]:
    """Return a Detail for each field that does not fit the tenant or this installation."""
    found = []
    if tenant.region is not None and config.region not in (None, tenant.region):
        only = f"This tenant's recordings may be stored in {tenant.region} only"
        found.append(Detail("region", only, "region_not_allowed"))
    else:
        region = region_of(config, tenant)
        needed = config.region is not None or config.recording.enabled
        if needed and region is not None and not _has_store(settings, region):
            none = f"No store is configured for {region} (RECORDINGS_URL_{region.upper()})"
            found.append(Detail("region", none, "region_without_store"))
    if config.recording.after_transfer and config.redaction.kinds and config.redaction.audio:
        # Nobody transcribes a human, so no words of theirs would be found on the recording.
        unknown = "Audio is not redacted after a transfer: set redaction.audio to false"
        found.append(Detail("recording.afterTransfer", unknown, "not_redacted"))
    return found


def _has_store(settings: Settings, region: Region) -> bool:
    urls = {
        "eu": settings.recordings_url_eu,
        "us": settings.recordings_url_us,
        "in": settings.recordings_url_in,
    }
    return urls[region] is not None
