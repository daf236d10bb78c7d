"""Settings from the environment: accepted and refused values, and secrets that are not printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import settings
from core.settings import Settings

pytestmark = pytest.mark.unit

SECRET = "a-test-secret-of-more-than-32-bytes!"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("ENV_FILE", raising=False)
    monkeypatch.chdir(tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return settings.load()


def test_nothing_set_is_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(monkeypatch)
    assert not loaded.auth_required
    assert loaded.listen_host == "127.0.0.1"
    assert not loaded.livekit_configured
    assert loaded.sip_http_url == loaded.livekit_http_url == "http://127.0.0.1:7880"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("TRUE", True)])
def test_auth_is_asked_for(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    assert load(monkeypatch, AUTH_REQUIRED=text, AUTH_JWT_SECRET=SECRET).auth_required is value


@pytest.mark.parametrize("text", ["false", "0", "False", ""])
def test_auth_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert load(monkeypatch, AUTH_REQUIRED=text).auth_required is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AUTH_REQUIRED", "yes"),
        ("AUTH_REQUIRED", "on"),
        ("AUTH_REQUIRED", "ture"),
        ("AUTH_REQUIRED", " "),
        ("AUTH_REQUIRED", "2"),
        ("AUTH_REQUIRE_ID", "t"),
        ("LOG_REDACT", "no"),
        ("AUTH_JWT_SECRET", "too-short-s3cret"),
        ("LIVEKIT_URL", "example.com-s3cret"),
        ("LIVEKIT_URL", "ftp://s3cret"),
        ("LIVEKIT_URL", "ws://user:s3cret@[::1"),
        ("LIVEKIT_URL", "ws://user:s3cret@h\u2100ost"),
        ("LIVEKIT_SIP_URL", "http://"),
        ("GATEWAY_URL", "http://h:99999"),
        ("GATEWAY_URL", "http://h:s3cret"),
        ("PUBLIC_URL", "s3cret.example.com"),
        ("PUBLIC_URL", "https://h:99999"),
        ("GATEWAY_PORT", "65536"),
        ("GATEWAY_PORT", "s3cret"),
        ("METRICS_PORT", "-1"),
        ("SHUTDOWN_GRACE_S", "inf"),
        ("AGENT_JOIN_TIMEOUT_S", "nan"),
        ("AGENT_JOIN_TIMEOUT_S", "0"),
        ("SIP_OUTBOUND_TRANSPORT", "s3cret"),
        ("SIP_ALLOW_PRIVATE", "yes"),
        ("SIP_ALLOW_PRIVATE", "ture"),
        ("SIP_ALLOWED_NETWORKS", "10.20.0.0/33"),
        ("SIP_ALLOWED_NETWORKS", "10.20.0.1/16"),
        ("SIP_ALLOWED_NETWORKS", "10.20.0.0/16,s3cret"),
        ("SIP_ALLOWED_NETWORKS", "10.20.0.0/16;10.30.0.0/16"),
        ("SIP_ALLOWED_NETWORKS", "localhost"),
        ("LOG_LEVEL", "LOUD"),
        ("WORKER_MAX_CALLS", "0"),
    ],
)
def test_a_wrong_value_refuses_to_start_and_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    with pytest.raises(SystemExit) as end:
        load(monkeypatch, **{name: value})
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"settings: {name}: ")
    assert "s3cret" not in printed.err and "ture" not in printed.err
    assert "Traceback" not in printed.err


def test_auth_without_a_verifier_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        load(monkeypatch, AUTH_REQUIRED="true", AUTH_JWT_SECRET="")
    assert end.value.code == 2
    assert "AUTH_JWT_SECRET" in capsys.readouterr().err


def test_the_environment_wins_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("GATEWAY_PORT=1111\nAGENT_NAME=file\nUNKNOWN=1\n")
    (tmp_path / "other.env").write_text("GATEWAY_PORT=2222\n")
    loaded = load(monkeypatch, AGENT_NAME="environment")
    assert (loaded.gateway_port, loaded.agent_name) == (1111, "environment")
    # An empty variable counts as unset.
    assert load(monkeypatch, AGENT_NAME="").agent_name == "file"
    assert load(monkeypatch, ENV_FILE="other.env").gateway_port == 2222
    assert load(monkeypatch, ENV_FILE="").gateway_port == 8080
    assert load(monkeypatch, ENV_FILE="/dev/null").gateway_port == 8080


@pytest.mark.parametrize("file", ["missing.env", ".", "latin.env"])
def test_a_named_file_that_cannot_be_read_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    file: str,
) -> None:
    (tmp_path / "latin.env").write_bytes(b"AGENT_NAME=caf\xe9\n")
    with pytest.raises(SystemExit) as end:
        load(monkeypatch, ENV_FILE=file)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("settings: ")


def test_networks_that_tenants_may_send_sip_to(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(monkeypatch, SIP_ALLOWED_NETWORKS=" 10.20.0.0/16, FD00:20::/32 ,192.0.2.7/32")
    assert loaded.sip_allowed_networks == ("10.20.0.0/16", "fd00:20::/32", "192.0.2.7/32")
    monkeypatch.delenv("SIP_ALLOWED_NETWORKS")
    loaded = load(monkeypatch)
    assert (loaded.sip_allow_private, loaded.sip_allowed_networks) == (False, ())


def test_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(monkeypatch, AUTH_REQUIRED="1", AUTH_JWT_SECRET=SECRET)
    assert loaded.listen_host == "0.0.0.0"
    assert load(monkeypatch, GATEWAY_HOST="10.0.0.1").listen_host == "10.0.0.1"
    assert load(monkeypatch, AUTH_REQUIRED="0").listen_host == "10.0.0.1"


def test_secrets_are_not_in_its_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AUTH_JWT_SECRET", "LIVEKIT_API_SECRET", "SIP_OUTBOUND_AUTH_PASSWORD")
    loaded = load(monkeypatch, **dict.fromkeys(names, SECRET), OPENAI_API_KEY=SECRET)
    assert SECRET not in repr(loaded) + str(loaded) + str(loaded.model_dump())


def test_the_public_address_is_the_gateways_own_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, GATEWAY_PORT="8090").public_base_url == "http://127.0.0.1:8090"
    own = "https://gateway.example.com"
    assert load(monkeypatch, GATEWAY_URL=own).public_base_url == own
    public = load(monkeypatch, PUBLIC_URL="https://voice.example.com/").public_base_url
    assert public == "https://voice.example.com"
