"""All settings, read from the environment in this one place.

Every name below is the environment variable in upper case. ``.env`` in the
working directory is read too (``ENV_FILE`` names another file, an empty
``ENV_FILE`` none); a real environment variable wins over the file, and an
empty value counts as unset.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from core.recordings.config import TenantRecordings
from core.setting_types import (
    Country,
    Network,
    NumberPrefix,
    RecordingKeys,
    StoreUrl,
    StrictBool,
    comma_separated,
)


class Settings(BaseSettings):
    """One object for gateway, worker, bridge and tools."""

    model_config = SettingsConfigDict(
        extra="ignore", env_ignore_empty=True, hide_input_in_errors=True, frozen=True
    )

    # --- LiveKit
    livekit_url: str = "ws://127.0.0.1:7880"
    livekit_public_url: str | None = Field(
        None, description="LiveKit's address for browsers; default: LIVEKIT_URL."
    )
    livekit_api_key: str | None = None
    livekit_api_secret: SecretStr | None = None
    livekit_sip_url: str | None = Field(
        None, description="Where the SIP API is served; default LIVEKIT_URL (livekit-sip)."
    )

    livekit_server_bin: Path | None = Field(
        None, description="The livekit-server to run in development; default: found or built."
    )
    livekit_sip_bin: Path | None = Field(
        None, description="A livekit-sip to test besides the bridge; default: the one on PATH."
    )

    # --- Gateway
    gateway_host: str | None = Field(
        None, description="Listen address. Default: 127.0.0.1 without auth, 0.0.0.0 with it."
    )
    allow_open_gateway: StrictBool = Field(
        False,
        description="Allow a public GATEWAY_HOST without AUTH_REQUIRED: anybody who reaches the "
        "gateway can place calls.",
    )
    gateway_port: int = Field(8080, ge=0, le=65535)
    public_url: str | None = Field(
        None,
        description="Where Twilio and browsers reach the gateway: https://voice.example.com; "
        "default: GATEWAY_URL.",
    )
    gateway_url: str | None = Field(
        None, description="Where workers reach the gateway; default http://127.0.0.1:GATEWAY_PORT."
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Serve /metrics on this port instead of GATEWAY_PORT."
    )
    database_url: str = "sqlite:///data/switchroom.db"
    cache_url: str = Field(
        "memory://",
        description="memory:// or redis://…: the cache of agents and numbers for calls.",
    )
    data_dir: Path = Field(Path("data"), description="Spools and state files of this machine.")
    shutdown_grace_s: float = Field(
        20.0, ge=0, allow_inf_nan=False, description="How long shutdown waits for dials."
    )

    # --- Authentication
    auth_required: StrictBool = False
    auth_require_id: StrictBool = Field(False, description="Refuse tokens that name no tenant.")
    auth_jwt_secret: SecretStr | None = Field(None, description="HS256 key, at least 32 bytes.")
    auth_jwt_public_key: Path | None = Field(None, description="PEM file: RS256, ES256 or EdDSA.")
    auth_jwks_url: str | None = None
    auth_jwt_audience: str | None = None
    auth_jwt_issuer: str | None = None
    auth_api_secrets_json: SecretStr | None = Field(
        None, description='[{"id","secret"}], secrets of at least 16 characters.'
    )

    secrets_key: SecretStr | None = Field(
        None,
        description="Fernet keys, comma-separated, that encrypt credentials; the first encrypts. "
        "Default: a key generated once and stored in DATA_DIR.",
    )

    # --- Webhooks of tenants
    webhook_allow_private: StrictBool = Field(
        False,
        description="Let webhooks and tools lead to private and loopback addresses (development).",
    )

    # --- Where tenants may send SIP
    sip_allow_private: StrictBool = Field(
        False,
        description="Let tenants send SIP to private and loopback addresses (development).",
    )
    sip_allowed_networks: Annotated[
        tuple[Network, ...], NoDecode, BeforeValidator(comma_separated)
    ] = Field((), description="10.20.0.0/16,fd00:20::/32: private networks with tenants' trunks.")

    # --- Outbound SIP
    sip_outbound_address: str | None = Field(None, description="hostname or hostname:port.")
    sip_outbound_auth_username: str | None = None
    sip_outbound_auth_password: SecretStr | None = None
    sip_outbound_transport: Literal["auto", "udp", "tcp", "tls"] = "auto"

    # --- What may be called, and how much at a time
    dial_home_country: Country | None = Field(
        None, description="DE: the country whose national numbers the trunk dials."
    )
    dial_allowed_countries: Annotated[
        frozenset[Country], NoDecode, BeforeValidator(comma_separated)
    ] = Field(frozenset(), description="DE,AT,CH; default: every country.")
    dial_blocked_prefixes: Annotated[
        tuple[NumberPrefix, ...], NoDecode, BeforeValidator(comma_separated)
    ] = Field((), description="+881,+882,0190; as dialled, or with + as an international number.")
    dial_allow_special: StrictBool = Field(
        False, description="Let emergency, short and premium-rate numbers be called."
    )
    calls_per_second: float | None = Field(
        None, gt=0, le=10_000, description="Outbound calls per second of a tenant, on all gateways."
    )
    max_concurrent_calls: int | None = Field(
        None,
        ge=1,
        description="Unfinished calls of a tenant on all gateways; a transfer's human counts as "
        "one more.",
    )
    fair_share_reserve: float = Field(
        0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Part of the workers' places that tenants above their fair share leave free.",
    )

    max_streams: int = Field(
        1000, ge=1, description="Open event streams and long polls of a tenant, per gateway."
    )

    # --- Numbers
    sip_public_address: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,253}(:[0-9]{1,5})?(;transport=(udp|tcp|tls))?$",
        description="Where carriers reach the SIP service: host, host:port, with ;transport=tcp.",
    )
    sip_numbers_need_approval: StrictBool = Field(
        True, description="Tenants' numbers of provider sip await an operator's approval."
    )
    twilio_base_url: str | None = Field(
        None, description="Replaces all of Twilio's API hosts; default: Twilio's own."
    )

    # --- The embedded SIP service
    bridge_host: str = "127.0.0.1"
    bridge_port: int = Field(7885, ge=0, le=65535)
    bridge_sip_listen: str = "127.0.0.1:5060"

    # --- Worker
    agent_name: str = Field("switchroom", min_length=1)
    agents_dir: Path = Path("agents")
    default_agent: str = Field("demo", description="The agent that joins when none is named.")
    worker_max_calls: int = Field(10, ge=1, description="Calls one worker takes at a time.")
    worker_http_port: int = Field(8081, ge=0, le=65535)
    worker_http_host: str = Field(
        "127.0.0.1", description="Listen address of the worker's health and metrics ports."
    )
    worker_metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Serve the worker's Prometheus /metrics on this port."
    )
    worker_idle_processes: int = Field(2, ge=0)
    vad: Literal["native", "plugin"] = Field(
        "native", description="Silero's model: built in, or in livekit-plugins-silero."
    )
    turn_detection: Literal["vad", "model"] = Field(
        "vad",
        description="How a caller's turn ends: by silence, or by silence judged by a local model "
        "(kinder to people who pause, about 250 MB more per worker).",
    )
    endpointing_ms: int = Field(
        400, ge=100, le=5_000, description="The silence that ends a caller's turn."
    )
    worker_drain_timeout_s: int = Field(3600, ge=0)
    agent_join_timeout_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="A call whose agent has not joined by then is ended.",
    )
    ring_while_full_s: float = Field(
        20.0,
        ge=0,
        le=60,
        description="How long a caller hears ringing while all workers' places are taken.",
    )
    agent_silent_s: float = Field(
        3.5,
        ge=2.5,
        allow_inf_nan=False,
        description="Without a heartbeat for this long (one a second), a worker's agents that do "
        "not respond either are lost, and others take over their calls.",
    )

    # --- Stream worker: calls on WebSockets, without a room
    streams_host: str = Field("127.0.0.1", description="Listen address of the stream worker.")
    streams_port: int = Field(8082, ge=0, le=65535)
    streams_url: str | None = Field(
        None, description="Where gateways reach this stream worker; default: its host and port."
    )
    streams_max_sessions: int = Field(
        20, ge=1, description="Sessions one stream worker takes at a time."
    )
    session_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(comma_separated)] = Field(
        (),
        description="Origins of web pages that may open sessions besides PUBLIC_URL's; *: all.",
    )

    # --- Recordings
    recordings_url: StoreUrl | None = Field(
        None,
        description="file:///path or s3://bucket/prefix: the store of recordings of calls without "
        "a region; default: DATA_DIR/recordings.",
    )
    recordings_url_eu: StoreUrl | None = Field(None, description="The same for the region eu.")
    recordings_url_us: StoreUrl | None = Field(None, description="The same for the region us.")
    recordings_url_in: StoreUrl | None = Field(None, description="The same for the region in.")
    recordings_key: RecordingKeys | None = Field(
        None,
        description="32-byte keys in base64, comma-separated, that encrypt recordings; the first "
        "encrypts. Default: the store's own encryption, if any.",
    )
    recordings_retention_days: int | None = Field(
        None, ge=1, le=36_500, description="Recordings are deleted then; default: never."
    )
    recordings_tenants: dict[str, TenantRecordings] = Field(
        default_factory=dict,
        description='{"acme": {"region": "eu", "retentionDays": 30}}: by tenant.',
    )
    recordings_export_urls: Annotated[
        tuple[StoreUrl, ...], NoDecode, BeforeValidator(comma_separated)
    ] = Field((), description="s3://bucket/prefix,…: where exports may go with our credentials.")
    aws_access_key_id: str | None = None
    aws_secret_access_key: SecretStr | None = None
    aws_session_token: SecretStr | None = None
    aws_region: str | None = None
    aws_endpoint_url: str | None = Field(
        None, description="Of a store that speaks S3; default: Amazon's own."
    )

    # --- Providers
    deepgram_api_key: SecretStr | None = None
    deepgram_base_url: str = "https://api.deepgram.com/v1/listen"
    openai_api_key: SecretStr | None = None
    openai_base_url: str = "https://api.openai.com/v1"
    cartesia_api_key: SecretStr | None = None
    cartesia_base_url: str = "https://api.cartesia.ai"

    # --- Logs
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, JSON lines elsewhere."
    )
    log_redact: StrictBool = Field(
        True, description="Mask all but the last digits of phone numbers, and omit speech."
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator(
        "livekit_url",
        "livekit_public_url",
        "livekit_sip_url",
        "gateway_url",
        "public_url",
        "streams_url",
    )
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            known = parts.scheme in {"ws", "wss", "http", "https"} and parts.hostname
            usable = bool(known) and parts.port != 0
        except ValueError:  # the error's text quotes the address, which may hold a password
            usable = False
        if not usable:
            raise ValueError("must be a ws://, wss://, http:// or https:// address")
        return value.rstrip("/")

    @field_validator("auth_jwt_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        # RFC 7518 §3.2: an HS256 key has at least the hash's 256 bits.
        if value is not None and len(value.get_secret_value().encode()) < 32:
            raise ValueError("must have at least 32 bytes")
        return value

    @model_validator(mode="after")
    def _auth_has_a_verifier(self) -> Self:
        verifiers = (
            self.auth_jwt_secret,
            self.auth_jwt_public_key,
            self.auth_jwks_url,
            self.auth_api_secrets_json,
        )
        if self.auth_required and not any(verifiers):
            raise ValueError(
                "AUTH_REQUIRED needs one of AUTH_JWT_SECRET, AUTH_JWT_PUBLIC_KEY, "
                "AUTH_JWKS_URL, AUTH_API_SECRETS_JSON"
            )
        return self

    def tenant_recordings(self, auth_id: str | None) -> TenantRecordings:
        """Return what RECORDINGS_TENANTS says of the tenant; the operator is None."""
        known = None if auth_id is None else self.recordings_tenants.get(auth_id)
        return known or TenantRecordings()

    @property
    def livekit_configured(self) -> bool:
        return bool(self.livekit_api_key and self.livekit_api_secret)

    @property
    def livekit_http_url(self) -> str:
        return _http(self.livekit_url)

    @property
    def livekit_browser_url(self) -> str:
        return self.livekit_public_url or self.livekit_url

    @property
    def sip_http_url(self) -> str:
        return _http(self.livekit_sip_url or self.livekit_url)

    @property
    def listen_host(self) -> str:
        return self.gateway_host or ("0.0.0.0" if self.auth_required else "127.0.0.1")

    @property
    def public_base_url(self) -> str:
        return _http(self.public_url or self.gateway_base_url)

    @property
    def gateway_base_url(self) -> str:
        return self.gateway_url or f"http://127.0.0.1:{self.gateway_port}"


def _http(url: str) -> str:
    return "http" + url[2:] if url.startswith("ws") else url


def load() -> Settings:
    """Read the environment. On an error, print the setting's name (never its value) and exit."""
    file = os.environ.get("ENV_FILE", ".env")
    if file and "ENV_FILE" in os.environ and (not Path(file).exists() or Path(file).is_dir()):
        # A missing file must not be ignored: AUTH_REQUIRED may be set in it.
        print("settings: ENV_FILE: names no file", file=sys.stderr)
        raise SystemExit(2)
    try:
        return Settings(_env_file=file or None)
    except (OSError, UnicodeDecodeError) as error:
        print(f"settings: {file}: cannot be read ({type(error).__name__})", file=sys.stderr)
        raise SystemExit(2) from None
    except ValidationError as error:
        for problem in error.errors():
            # The rest of loc is a position in a list, which is one variable.
            name = "".join(str(part) for part in problem["loc"][:1]).upper()
            print(f"settings: {name or 'environment'}: {problem['msg']}", file=sys.stderr)
        raise SystemExit(2) from None
