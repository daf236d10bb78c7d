"""The fields of agents about recordings: what is taken, kept and merged, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.models import AgentConfig
from core.settings import Settings
from core.tokens import TokenIssuer
from dev.stack.environment import GivenSettings
from gateway.fields.agent_recording import faults_of
from gateway.lookup.agent_files import AgentFiles, BadAgentFile
from tests.conftest import ACME, RIVAL, bearer, operator
from tests.support.agents_rig import Answer, Api, api, gateway
from tests.support.inprocess import SECRET, Running, running, settings_in
from tests.support.numbers import make_agent

pytestmark = pytest.mark.unit

__all__ = ["api", "gateway"]

DEFAULTS = AgentConfig(name="x").wire()
WHOLE: dict[str, Any] = {
    "recording": {"enabled": True, "format": "ogg", "afterTransfer": True, "retentionDays": 30},
    "disclosure": {"text": "This call is recorded."},
    "consent": {
        "mode": "opt_in",
        "question": "May we record?",
        "onRefused": "hang_up",
        "byJurisdiction": True,
    },
    "redaction": {"kinds": ["card", "iban"], "audio": False},
}
PARTS = sorted(WHOLE)


class TestFields:
    async def test_all_are_kept_and_in_every_version(self, api: Api) -> None:
        made = await api.made(**WHOLE)
        assert {name: made[name] for name in PARTS} == WHOLE
        plain = await api.ask("PATCH", f"/{made['id']}", dict.fromkeys(PARTS))
        assert {name: plain.body[name] for name in PARTS} == {n: DEFAULTS[n] for n in PARTS}
        listed = (await api.ask("GET", f"/{made['id']}/versions")).body["data"]
        assert [version["consent"]["mode"] for version in listed] == ["none", "opt_in"]
        back = await api.ask("POST", f"/{made['id']}/rollback", {"version": 1})
        assert {name: back.body[name] for name in PARTS} == WHOLE

    async def test_null_within_is_the_default(self, api: Api) -> None:
        nulls = {name: dict.fromkeys(WHOLE[name]) for name in PARTS}
        made = await api.made(**nulls, region=None)
        assert {name: made[name] for name in PARTS} == {name: DEFAULTS[name] for name in PARTS}

    async def test_a_patch_changes_the_fields_that_it_names(self, api: Api) -> None:
        """Else a new question would set the mode back to none."""
        made = await api.made(**WHOLE)
        changes = {
            "recording": {"retentionDays": None},
            "consent": {"question": "Is that all right?"},
            "redaction": {"kinds": ["email"]},
            "disclosure": {},
        }
        after = await api.ask("PATCH", f"/{made['id']}", changes)
        assert {name: after.body[name] for name in PARTS} == {
            "recording": {**WHOLE["recording"], "retentionDays": None},
            "disclosure": WHOLE["disclosure"],
            "consent": {**WHOLE["consent"], "question": "Is that all right?"},
            "redaction": {"kinds": ["email"], "audio": False},
        }

    @pytest.mark.parametrize("enabled", [True, False])
    async def test_recording_may_be_true_or_false(self, api: Api, enabled: bool) -> None:
        made = await api.made(recording=enabled)
        assert made["recording"] == {**DEFAULTS["recording"], "enabled": enabled}
        again = {"recording": not enabled}
        changed = (await api.ask("PATCH", f"/{made['id']}", again)).body
        assert changed["recording"] == {**DEFAULTS["recording"], "enabled": not enabled}

    async def test_true_leaves_the_rest_as_it_is(self, api: Api) -> None:
        made = await api.made(recording={"format": "ogg"})
        changed = (await api.ask("PATCH", f"/{made['id']}", {"recording": True})).body
        assert changed["recording"] == {**DEFAULTS["recording"], "enabled": True, "format": "ogg"}

    @pytest.mark.parametrize("mode", ["announcement", "opt_in"])
    async def test_consent_needs_no_recording(self, api: Api, mode: str) -> None:
        """Words and keys are kept of any call."""
        made = await api.made(consent={"mode": mode})
        assert (made["consent"]["mode"], made["recording"]["enabled"]) == (mode, False)

    @pytest.mark.attack
    @pytest.mark.parametrize("method", ["POST", "PATCH"])
    @pytest.mark.parametrize(
        ("fields", "faulty"),
        [
            ({"recording": 1}, "recording"),
            ({"recording": "true"}, "recording"),
            ({"recording": []}, "recording"),
            ({"recording": {"enabled": 1}}, "recording.enabled"),
            ({"recording": {"enabled": "no"}}, "recording.enabled"),
            ({"recording": {"Enabled": True}}, "recording.Enabled"),
            ({"recording": {"format": "mp3"}}, "recording.format"),
            ({"recording": {"afterTransfer": "yes"}}, "recording.afterTransfer"),
            ({"recording": {"retentionDays": 0}}, "recording.retentionDays"),
            ({"recording": {"retentionDays": 10**30}}, "recording.retentionDays"),
            ({"recording": {"retentionDays": 1.5}}, "recording.retentionDays"),
            ({"recording": {"retentionDays": True}}, "recording.retentionDays"),
            ({"disclosure": "Recorded."}, "disclosure"),
            ({"disclosure": True}, "disclosure"),
            ({"disclosure": {"text": " "}}, "disclosure.text"),
            ({"disclosure": {"text": "x" * 501}}, "disclosure.text"),
            ({"disclosure": {"message": "Recorded."}}, "disclosure.message"),
            ({"consent": "opt_in"}, "consent"),
            ({"consent": True}, "consent"),
            ({"consent": {"mode": "optin"}}, "consent.mode"),
            ({"consent": {"mode": ["none"]}}, "consent.mode"),
            ({"consent": {"onRefused": "record"}}, "consent.onRefused"),
            ({"consent": {"byJurisdiction": "yes"}}, "consent.byJurisdiction"),
            ({"redaction": ["card"]}, "redaction"),
            ({"redaction": {"kinds": "card"}}, "redaction.kinds"),
            ({"redaction": {"kinds": ["cards"]}}, "redaction.kinds.0"),
            ({"redaction": {"kinds": ["card"] * 8}}, "redaction.kinds"),
            ({"redaction": {"audio": 0}}, "redaction.audio"),
            ({"region": "EU"}, "region"),
            ({"region": True}, "region"),
            ({"record": True}, "record"),
            ({"disableRecording": True}, "disableRecording"),
        ],
    )
    async def test_wrong_values(
        self, api: Api, method: str, fields: dict[str, Any], faulty: str
    ) -> None:
        path, name = "", {"name": "Two"}
        if method == "PATCH":
            made = await api.made(**WHOLE)
            path, name = f"/{made['id']}", {}
        refused = await api.ask(method, path, {**name, **fields})
        assert (refused.status, refused.code) == (422, "VALIDATION_ERROR")
        assert refused.fields == [faulty]


class TestAfterTransfer:
    """A human's words are not transcribed, so their audio cannot be redacted."""

    async def test_audio_that_should_be_redacted(self, api: Api) -> None:
        both = {"recording": {"afterTransfer": True}, "redaction": {"kinds": ["card"]}}
        refused = await api.ask("POST", body={"name": "One", **both})
        assert (refused.status, refused.fields) == (422, ["recording.afterTransfer"])
        made = await api.made(**{**both, "redaction": {"kinds": ["card"], "audio": False}})
        changed = await api.ask("PATCH", f"/{made['id']}", {"redaction": {"audio": True}})
        assert (changed.status, changed.fields) == (422, ["recording.afterTransfer"])

    async def test_nothing_to_redact(self, api: Api) -> None:
        made = await api.made(recording={"afterTransfer": True}, redaction={"audio": True})
        assert made["recording"]["afterTransfer"]

    @pytest.mark.parametrize("wanted", [True, False])
    async def test_the_worker_is_told(self, gateway: Running, wanted: bool) -> None:
        agent = await make_agent(gateway, recording={"enabled": True, "afterTransfer": wanted})
        call = await gateway.call(agent=agent, record=True)
        async with gateway.http.get(
            f"/internal/calls/{call.id}", headers=bearer(TokenIssuer(SECRET).for_call(call.id))
        ) as response:
            assert (await response.json())["recording"]["afterTransfer"] is wanted


STORES = {
    "recordings_url_eu": "file:///srv/eu",
    "recordings_url_us": "file:///srv/us",
    "recordings_tenants": {"acme": {"region": "eu", "retentionDays": 30}},
}


class TestRegion:
    """acme's recordings stay in the EU; rival's may be in the EU or the US; India has no store."""

    @pytest.fixture
    async def gateway(self, tmp_path: Path) -> AsyncIterator[Running]:
        async with running(settings_in(tmp_path, **STORES)) as gateway:
            yield gateway

    async def ask(
        self, gateway: Running, headers: dict[str, str], path: str = "", **body: Any
    ) -> Answer:
        api = Api(gateway)
        method = "PATCH" if path and not path.endswith("rollback") else "POST"
        named = {} if path else {"name": "One"}
        return await api.ask(method, path, {**named, **body}, headers)

    @pytest.mark.parametrize(
        ("headers", "region", "fault"),
        [
            (ACME, None, None),
            (ACME, "eu", None),
            (ACME, "us", "stored in eu only"),
            (ACME, "in", "stored in eu only"),
            (RIVAL, None, None),
            (RIVAL, "us", None),
            (RIVAL, "in", "RECORDINGS_URL_IN"),
        ],
    )
    async def test_an_agents_region(
        self, gateway: Running, headers: dict[str, str], region: str | None, fault: str | None
    ) -> None:
        made = await self.ask(gateway, headers)
        assert made.status == 200
        for path in ("", f"/{made.body['id']}"):
            answer = await self.ask(gateway, headers, path, region=region)
            if fault is None:
                assert (answer.status, answer.body["region"]) == (200, region)
            else:
                assert (answer.status, answer.fields) == (422, ["region"])
                assert fault in answer.body["error"]["message"]

    async def test_an_operators_change_is_checked_for_the_owner(self, gateway: Running) -> None:
        made = await self.ask(gateway, ACME)
        refused = await self.ask(gateway, operator(), f"/{made.body['id']}", region="us")
        assert (refused.status, refused.fields) == (422, ["region"])

    async def test_so_is_an_old_version(self, gateway: Running) -> None:
        """The tenant's region may be younger."""
        agent = await make_agent(gateway, region="us")
        path = f"/{agent.id}"
        assert (await self.ask(gateway, ACME, path, name="Two")).status == 200
        assert (await self.ask(gateway, ACME, path, recording=True)).fields == ["region"]
        assert (await self.ask(gateway, ACME, path, region=None)).status == 200
        assert (await self.ask(gateway, ACME, f"{path}/rollback", version=1)).fields == ["region"]

    @pytest.mark.parametrize(
        ("tenant", "region", "stored"),
        [
            ("acme", None, "eu"),
            ("acme", "eu", "eu"),
            ("acme", "us", "eu"),
            ("rival", None, None),
            ("rival", "us", "us"),
        ],
    )
    async def test_where_a_call_is_stored(
        self, gateway: Running, tenant: str, region: str | None, stored: str | None
    ) -> None:
        """The tenant's region prevails over an agent's that is older, or a file's."""
        agent = await make_agent(gateway, tenant, region=region, recording={"enabled": True})
        call = await gateway.call(auth_id=tenant, agent=agent, record=True)
        async with gateway.http.get(
            f"/internal/calls/{call.id}", headers=bearer(TokenIssuer(SECRET).for_call(call.id))
        ) as response:
            told = (await response.json())["recording"]
        assert told["region"] == stored

    async def test_a_tenants_region_without_a_store(self, tmp_path: Path) -> None:
        tenants = {"acme": {"region": "in"}}
        async with running(settings_in(tmp_path, recordings_tenants=tenants)) as gateway:
            assert (await self.ask(gateway, ACME)).status == 200
            refused = await self.ask(gateway, ACME, recording=True)
            assert (refused.status, refused.fields) == (422, ["region"])


class TestFiles:
    @staticmethod
    def files(folder: Path, settings: Settings | None = None, **fields: Any) -> AgentFiles:
        (folder / "one.yaml").write_text(yaml.safe_dump({"name": "One", **fields}))
        return AgentFiles(settings or GivenSettings(agents_dir=folder))

    def test_they_take_the_same_fields(self, tmp_path: Path) -> None:
        agent = self.files(tmp_path, **WHOLE).get("one")
        assert agent is not None
        shown = agent.config.wire()
        assert {name: shown[name] for name in PARTS} == WHOLE

    def test_recording_may_be_true(self, tmp_path: Path) -> None:
        agent = self.files(tmp_path, recording=True).get("one")
        assert agent is not None and agent.config.recording.enabled

    @pytest.mark.parametrize(
        ("fields", "fault"),
        [
            ({"recording": "yes please"}, "recording: "),
            ({"recording": {"enabled": "no"}}, "recording.enabled: "),
            ({"consent": {"mode": "optin"}}, "consent.mode: "),
            ({"disclosure": "Recorded."}, "disclosure: "),
            ({"record": True}, "record: "),
            ({"region": "us"}, r"region: .*RECORDINGS_URL_US"),
            (
                {"recording": {"afterTransfer": True}, "redaction": {"kinds": ["card"]}},
                r"recording\.afterTransfer: .*redaction\.audio",
            ),
        ],
    )
    def test_wrong_values(self, tmp_path: Path, fields: dict[str, Any], fault: str) -> None:
        with pytest.raises(BadAgentFile, match=rf"^one\.yaml: {fault}"):
            self.files(tmp_path, **fields).check()

    def test_a_region_with_a_store(self, tmp_path: Path) -> None:
        settings = GivenSettings(agents_dir=tmp_path, recordings_url_us="file:///srv/us")
        assert self.files(tmp_path, settings, region="us").check() == ["one"]


def test_every_region_has_a_setting() -> None:
    for region in ("eu", "us", "in"):
        config = AgentConfig(name="One", region=region)
        (fault,) = faults_of(config, GivenSettings())
        assert fault.field == "region"
        store: dict[str, Any] = {f"recordings_url_{region}": "file:///srv"}
        settings = GivenSettings(**store)
        assert faults_of(config, settings) == []
