"""Settings for children: an object that ignores our own environment, and its variables."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from core.settings import Settings


class GivenSettings(Settings):
    """Settings from the given values and the defaults only: no environment, no .env file."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def given(settings: Settings) -> dict[str, Any]:
    """Return the values that were set, by field name, without defaults."""
    return {name: getattr(settings, name) for name in settings.model_fields_set}


def as_variables(settings: Settings) -> dict[str, str]:
    """Return the environment variables from which ``core.settings.load`` makes these settings."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {
        "ENV_FILE": "",
        **{name.upper(): _as_text(value) for name, value in values.items() if value is not None},
    }


def _as_text(value: object) -> str:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case bool():
            return "true" if value else "false"
        case tuple() | frozenset():
            return ",".join(sorted(value))
        case _:
            return str(value)
