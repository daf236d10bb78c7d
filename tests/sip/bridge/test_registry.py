"""The bridge's stored trunks and rules."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from livekit.protocol import sip as pb
from livekit.protocol.models import ListUpdate

from sip.bridge.registry import Registry
from sip.bridge.twirp import TwirpError

pytestmark = pytest.mark.unit

CALLER, CALLED = "+15105550100", "+15105550199"


class TestRegistry:
    def inbound(self, **fields: Any) -> pb.SIPInboundTrunkInfo:
        return pb.SIPInboundTrunkInfo(**{"numbers": [CALLED], **fields})

    async def test_everything_survives_a_restart(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "bridge.json"
        first = Registry(path)
        first.load()
        trunk = first.create_inbound(self.inbound(name="in", metadata="m"))
        out = first.create_outbound(
            pb.SIPOutboundTrunkInfo(address="a:1", numbers=["+1"], auth_password="s3cret")
        )
        rule = first.create_rule(
            pb.SIPDispatchRuleInfo(
                rule=pb.SIPDispatchRule(
                    dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name="r")
                ),
                trunk_ids=[trunk.sip_trunk_id],
            )
        )
        await first.saved()
        second = Registry(path)
        second.load()
        assert second.get_inbound(trunk.sip_trunk_id) == trunk
        assert second.get_outbound(out.sip_trunk_id) == out
        assert second.list_rules(pb.ListSIPDispatchRuleRequest()) == [rule]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [file.name for file in path.parent.iterdir()] == ["bridge.json"]

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"inbound": [1]}', "null"])
    def test_a_broken_file_is_named(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "bridge.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"bridge\.json"):
            Registry(path).load()

    def test_lists_are_set_added_to_and_removed_from(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "s")
        trunk = registry.create_inbound(self.inbound(numbers=["+1", "+2"]))
        diff = pb.SIPInboundTrunkUpdate(numbers=ListUpdate(add=["+3"], remove=["+1"]))
        assert list(registry.update_inbound(trunk.sip_trunk_id, diff).numbers) == ["+2", "+3"]
        diff = pb.SIPInboundTrunkUpdate(numbers=ListUpdate(set=["+9"]), name="n")
        updated = registry.update_inbound(trunk.sip_trunk_id, diff)
        assert (list(updated.numbers), updated.name) == (["+9"], "n")
        assert updated.created_at == trunk.created_at

    def test_a_refused_change_changes_nothing(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "s")
        trunk = registry.create_inbound(self.inbound())
        with pytest.raises(TwirpError):
            registry.update_inbound(
                trunk.sip_trunk_id, pb.SIPInboundTrunkUpdate(numbers=ListUpdate(clear=True))
            )
        assert registry.get_inbound(trunk.sip_trunk_id) == trunk

    @pytest.mark.parametrize(
        "fields",
        [
            {"numbers": []},
            {"auth_username": "u"},
            {"headers": {"Via": "x"}},
            {"sip_trunk_id": "ST_mine"},
        ],
    )
    def test_trunks_that_are_not_taken(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        with pytest.raises(TwirpError) as raised:
            Registry(tmp_path / "s").create_inbound(self.inbound(**fields))
        assert raised.value.code == "invalid_argument"

    def test_two_trunks_for_the_same_calls(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "s")
        registry.create_inbound(self.inbound())
        registry.create_inbound(self.inbound(allowed_numbers=[CALLER]))
        with pytest.raises(TwirpError, match="Conflicting"):
            registry.create_inbound(self.inbound(numbers=["1 510 555 0199"]))

    def test_rules_with_a_pin_are_refused_in_so_many_words(self, tmp_path: Path) -> None:
        rule = pb.SIPDispatchRule(
            dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name="r", pin="1234")
        )
        with pytest.raises(TwirpError) as raised:
            Registry(tmp_path / "s").create_rule(pb.SIPDispatchRuleInfo(rule=rule))
        assert raised.value.code == "unimplemented"

    def test_what_is_handed_out_is_a_copy(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "s")
        trunk = registry.create_inbound(self.inbound())
        trunk.name = "mine"
        assert registry.get_inbound(trunk.sip_trunk_id).name == ""
