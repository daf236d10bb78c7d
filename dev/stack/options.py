"""The options of a stack, and the settings of its components."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from core.settings import Settings
from dev.stack.component import Progress, Report
from dev.stack.environment import GivenSettings, given

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]
PROVIDER_KEYS = ("deepgram_api_key", "openai_api_key", "cartesia_api_key")


def _ignore(_: Progress) -> None:
    """Report nothing; the default of ``StackOptions.report``."""


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """The components to start, and their settings.

    ``values`` are settings by field name, for all components. They override ``settings`` (as read
    from the environment), of which only the fields that were set count. LiveKit is the exception:
    the stack always starts its own server, on the port of LIVEKIT_URL if that names this machine.
    For the rest the stack chooses free ports, new keys and a database in the run folder. ``env``
    adds environment variables to single components, by name.
    """

    livekit: bool = True
    bridge: bool = True
    providers: bool | None = None
    """None starts them unless there are keys for all three real providers."""
    gateway: int = 1
    """The number of gateways (True is 1, False is 0) on one database; workers use GATEWAY_URL."""
    worker: int = 1
    """The number of workers (True is 1, False is 0); the second is called ``worker-2``."""
    streams: int = 0
    """The number of stream workers; the second is called ``streams-2``."""
    settings: Settings | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    livekit_config: Mapping[str, Any] = field(default_factory=dict)
    """Top-level keys of livekit-server's configuration, which replace ours."""
    keep: bool = False
    """Keep the run folder with the logs and the database."""
    ready_timeout_s: float = 60.0
    stop_grace_s: float = 10.0
    report: Report = _ignore


def choose_settings(
    options: StackOptions, run_dir: Path, take_port: Callable[[], int]
) -> tuple[Settings, int | None]:
    """Return settings with every address and key, and the port of the local provider servers.

    The port is None if they are not started.
    """
    chosen = given(options.settings) if options.settings else {}
    chosen.update(options.values)
    livekit_port = _local_port(chosen.pop("livekit_url", None)) or take_port()
    chosen.pop("livekit_public_url", None)  # another server's
    for name in ("gateway_port", "bridge_port", "worker_http_port"):
        if not chosen.get(name):  # also for 0: the other components must know the port
            chosen[name] = take_port()
    providers_port = take_port() if _local_providers(options, chosen) else None
    if providers_port is not None:
        base = f"http://{HOST}:{providers_port}"
        chosen["deepgram_base_url"] = f"{base}/v1/listen"
        chosen["openai_base_url"] = f"{base}/v1"
        chosen["cartesia_base_url"] = base
        chosen = dict.fromkeys(PROVIDER_KEYS, "local") | chosen
    if not (chosen.get("livekit_api_key") and chosen.get("livekit_api_secret")):
        chosen["livekit_api_key"] = f"API{secrets.token_hex(6)}"
        chosen["livekit_api_secret"] = secrets.token_hex(32)
    chosen["livekit_url"] = f"ws://{HOST}:{livekit_port}"
    # Without the bridge there may be a livekit-sip, whose API livekit-server serves.
    sip_port = chosen["bridge_port"] if options.bridge else livekit_port
    if "livekit_sip_url" not in options.values:
        chosen["livekit_sip_url"] = f"http://{HOST}:{sip_port}"
    chosen.setdefault("bridge_sip_listen", f"{HOST}:{take_port()}")
    chosen.setdefault("gateway_url", f"http://{HOST}:{chosen['gateway_port']}")
    chosen.setdefault("data_dir", run_dir / "data")
    chosen.setdefault("database_url", f"sqlite:///{run_dir / 'data' / 'switchroom.db'}")
    chosen.setdefault("agents_dir", ROOT / "agents")
    # The stack's tools, webhooks and phones are on this machine, at private addresses.
    chosen.setdefault("webhook_allow_private", True)
    chosen.setdefault("sip_allow_private", True)
    return GivenSettings(**chosen), providers_port


def _local_providers(options: StackOptions, chosen: Mapping[str, Any]) -> bool:
    if options.providers is not None:
        return options.providers
    return not all(chosen.get(name) for name in PROVIDER_KEYS)


def _local_port(url: str | None) -> int | None:
    """Return the port of a URL on this machine; None for any other URL."""
    parts = urlsplit(url or "")
    return parts.port if parts.hostname in {HOST, "localhost"} else None


def livekit_config(settings: Settings, udp_port: int) -> dict[str, Any]:
    """Return livekit-server's configuration: one node, no Redis, loopback only."""
    key, secret = settings.livekit_api_key, settings.livekit_api_secret
    if key is None or secret is None:
        raise ValueError("livekit-server needs a key and a secret")
    return {
        "port": _local_port(settings.livekit_url),
        "bind_addresses": [HOST],
        "keys": {key: secret.get_secret_value()},
        "rtc": {
            "udp_port": udp_port,
            "tcp_port": 0,  # it would listen on every interface
            "node_ip": HOST,
            "use_external_ip": False,
            "enable_loopback_candidate": True,
            "interfaces": {"includes": ["lo"]},
        },
        "webhook": {
            "api_key": key,
            "urls": [f"{settings.gateway_base_url}/livekit/webhook"],
        },
        # A late agent may create a room by joining it; LiveKit then closes it soon.
        "room": {"empty_timeout": 5, "departure_timeout": 3},
        "logging": {"level": "info", "json": True},
    }
