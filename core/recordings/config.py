"""An agent's configuration of what is kept of its calls, and of what callers are told about it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from core.shapes import Model, Words

Region = Literal["eu", "us", "in"]
Format = Literal["wav", "ogg"]
ConsentMode = Literal["none", "announcement", "opt_in"]
Kind = Literal["card", "iban", "email", "phone", "birth_date", "national_id"]
"""The kinds of personal data that are found in text."""

Spoken = Annotated[str, Words(blank=False), Field(min_length=1, max_length=500, pattern=r"\S")]


class _Part(Model):
    model_config = ConfigDict(extra="forbid", strict=True)


class Recording(_Part):
    """A call is recorded if this is enabled and the call asks for it (``record``)."""

    enabled: bool = False
    format: Format = Field("wav", description="wav: 16 kHz, 16 bits. ogg: Opus.")
    after_transfer: bool = Field(
        False, description="Go on after a warm transfer, with the human on the right channel."
    )
    retention_days: int | None = Field(
        None, ge=1, le=36_500, description="null: RECORDINGS_RETENTION_DAYS."
    )


def switchable(model: type[Model]) -> BeforeValidator:
    """Let true and false stand for ``{"enabled": …}``, the input of ``model``."""
    return BeforeValidator(_switched, json_schema_input_type=bool | model)


def _switched(value: Any) -> Any:
    return {"enabled": value} if isinstance(value, bool) else value


class Disclosure(_Part):
    """Spoken before the greeting."""

    text: Spoken | None = None


class Consent(_Part):
    """Whether callers are asked before anything of a call is kept."""

    mode: ConsentMode = Field(
        "none",
        description="announcement: the caller is told, by disclosure.text or a default. opt_in: "
        "the caller is asked, and neither audio nor words are kept before they agree.",
    )
    question: Spoken | None = Field(None, description="For opt_in; null: one in the language.")
    on_refused: Literal["continue", "hang_up"] = Field(
        "continue", description="continue: the call goes on, and nothing of it is kept."
    )
    by_jurisdiction: bool = Field(
        False,
        description="Use opt_in if either number is where the law asks for all parties' consent.",
    )


class Redaction(_Part):
    """Personal data that is removed from transcripts before they are stored."""

    kinds: list[Kind] = Field(default_factory=list, max_length=6)
    audio: bool = Field(True, description="Silence the words on the recording, too.")


class TenantRecordings(_Part):
    """What RECORDINGS_TENANTS says of a tenant."""

    region: Region | None = Field(None, description="Its agents may name no other region.")
    retention_days: int | None = Field(None, ge=1, le=36_500)
