"""Trunks and dispatch rules, kept in memory and saved to one JSON file after every change."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from livekit.protocol.models import ListUpdate
from livekit.protocol.sip import (
    ListSIPDispatchRuleRequest,
    ListSIPInboundTrunkRequest,
    ListSIPOutboundTrunkRequest,
    SIPDispatchRuleInfo,
    SIPDispatchRuleUpdate,
    SIPInboundTrunkInfo,
    SIPInboundTrunkUpdate,
    SIPOutboundTrunkInfo,
    SIPOutboundTrunkUpdate,
)

from sip.bridge import matching, validation
from sip.bridge.ids import new_id
from sip.bridge.twirp import TwirpError

M = TypeVar("M", bound=Message)

_FILE_VERSION: Final = 1


class Registry:
    """The trunks and rules. A change is durable once ``saved`` has been awaited.

    Raises TwirpError: ``invalid_argument`` if a change cannot be stored, or ``not_found``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.inbound: dict[str, SIPInboundTrunkInfo] = {}
        self.outbound: dict[str, SIPOutboundTrunkInfo] = {}
        self.rules: dict[str, SIPDispatchRuleInfo] = {}
        self._changed = False
        self._saving = asyncio.Lock()

    # --- persistence

    def load(self) -> None:
        """Read the state file, if it exists. Raises ValueError if it is broken."""
        if not self._path.exists():
            return
        try:
            state = json.loads(self._path.read_text())
            self.inbound = _parsed(state["inbound"], SIPInboundTrunkInfo, "sip_trunk_id")
            self.outbound = _parsed(state["outbound"], SIPOutboundTrunkInfo, "sip_trunk_id")
            self.rules = _parsed(state["rules"], SIPDispatchRuleInfo, "sip_dispatch_rule_id")
        except (KeyError, TypeError, ValueError, json_format.ParseError) as error:
            raise ValueError(f"{self._path} is not a state file of the bridge: {error}") from error

    async def saved(self) -> None:
        """Wait until all changes so far are in the file. After an OSError the next call retries."""
        async with self._saving:
            if not self._changed:
                return
            self._changed = False
            state = {
                "version": _FILE_VERSION,
                "inbound": _dumped(self.inbound.values()),
                "outbound": _dumped(self.outbound.values()),
                "rules": _dumped(self.rules.values()),
            }
            try:
                await asyncio.to_thread(self._write, state)
            except OSError:
                self._changed = True
                raise

    def _write(self, state: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Trunks hold passwords: mkstemp makes the file readable by its owner only.
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(state, file, indent=1)
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise

    # --- inbound trunks

    def create_inbound(self, info: SIPInboundTrunkInfo) -> SIPInboundTrunkInfo:
        if info.sip_trunk_id:
            raise validation.invalid("trunk ID must be empty")
        return self._put_inbound(info, new_id("ST"))

    def replace_inbound(self, trunk_id: str, info: SIPInboundTrunkInfo) -> SIPInboundTrunkInfo:
        old = _found(self.inbound, trunk_id, "sip trunk")
        if info.sip_trunk_id not in {"", trunk_id}:
            raise validation.invalid("trunk ID must be empty or match the one of the update")
        info.created_at.CopyFrom(old.created_at)
        return self._put_inbound(info, trunk_id)

    def update_inbound(self, trunk_id: str, diff: SIPInboundTrunkUpdate) -> SIPInboundTrunkInfo:
        info = _copy(_found(self.inbound, trunk_id, "sip trunk"))
        _update_list(info.numbers, diff, "numbers")
        _update_list(info.allowed_addresses, diff, "allowed_addresses")
        _update_list(info.allowed_numbers, diff, "allowed_numbers")
        _update_fields(info, diff, "auth_username auth_password auth_realm name metadata")
        _update_fields(info, diff, "media media_encryption")
        return self._put_inbound(info, trunk_id)

    def _put_inbound(self, info: SIPInboundTrunkInfo, trunk_id: str) -> SIPInboundTrunkInfo:
        if not info.numbers and not info.allowed_addresses and not info.auth_username:
            raise validation.invalid(
                "for security, one of the fields must be set: "
                "auth_username + auth_password, allowed_addresses or numbers"
            )
        if bool(info.auth_username) != bool(info.auth_password):
            raise validation.invalid("auth_username and auth_password must be set together")
        validation.headers(info.headers)
        validation.media(info.media, info.media_encryption)
        stored = _stamped(info, trunk_id, "sip_trunk_id")
        others = [trunk for key, trunk in self.inbound.items() if key != trunk_id]
        conflict = matching.conflicting_trunk(stored, others)
        if conflict is not None:
            raise validation.invalid(
                f'Conflicting inbound SIP Trunks: "<new>" and "{conflict.sip_trunk_id}", '
                "using the same number(s)"
            )
        self.inbound[trunk_id] = stored
        self._changed = True
        return _copy(stored)

    def list_inbound(self, request: ListSIPInboundTrunkRequest) -> list[SIPInboundTrunkInfo]:
        return [
            _copy(trunk)
            for trunk in _in_order(self.inbound, request.trunk_ids)
            if not request.numbers
            or not trunk.numbers
            or matching.normalized(request.numbers) & matching.normalized(trunk.numbers)
        ]

    # --- outbound trunks

    def create_outbound(self, info: SIPOutboundTrunkInfo) -> SIPOutboundTrunkInfo:
        if info.sip_trunk_id:
            raise validation.invalid("trunk ID must be empty")
        return self._put_outbound(info, new_id("ST"))

    def replace_outbound(self, trunk_id: str, info: SIPOutboundTrunkInfo) -> SIPOutboundTrunkInfo:
        old = _found(self.outbound, trunk_id, "sip trunk")
        if info.sip_trunk_id not in {"", trunk_id}:
            raise validation.invalid("trunk ID must be empty or match the one of the update")
        info.created_at.CopyFrom(old.created_at)
        return self._put_outbound(info, trunk_id)

    def update_outbound(self, trunk_id: str, diff: SIPOutboundTrunkUpdate) -> SIPOutboundTrunkInfo:
        info = _copy(_found(self.outbound, trunk_id, "sip trunk"))
        _update_list(info.numbers, diff, "numbers")
        _update_fields(info, diff, "address transport destination_country auth_username")
        _update_fields(info, diff, "auth_password name metadata media media_encryption from_host")
        return self._put_outbound(info, trunk_id)

    def _put_outbound(self, info: SIPOutboundTrunkInfo, trunk_id: str) -> SIPOutboundTrunkInfo:
        if not info.numbers:
            raise validation.invalid("no trunk numbers specified")
        if not info.address:
            raise validation.invalid("no outbound address specified")
        validation.host(info.address, "trunk address")
        if info.from_host:
            validation.host(info.from_host, "from_host")
        validation.headers(info.headers)
        validation.media(info.media, info.media_encryption)
        stored = _stamped(info, trunk_id, "sip_trunk_id")
        self.outbound[trunk_id] = stored
        self._changed = True
        return _copy(stored)

    def list_outbound(self, request: ListSIPOutboundTrunkRequest) -> list[SIPOutboundTrunkInfo]:
        return [
            _copy(trunk)
            for trunk in _in_order(self.outbound, request.trunk_ids)
            if not request.numbers or not trunk.numbers or set(request.numbers) & set(trunk.numbers)
        ]

    def get_inbound(self, trunk_id: str) -> SIPInboundTrunkInfo:
        return _copy(_found(self.inbound, trunk_id, "sip trunk"))

    def get_outbound(self, trunk_id: str) -> SIPOutboundTrunkInfo:
        return _copy(_found(self.outbound, trunk_id, "sip trunk"))

    def delete_trunk(self, trunk_id: str) -> None:
        """Delete a trunk of either kind; a missing one is no error, as at livekit-server."""
        if not trunk_id:
            raise validation.invalid("trunk ID is required")
        removed = self.inbound.pop(trunk_id, None) or self.outbound.pop(trunk_id, None)
        if removed is not None:
            self._changed = True

    # --- dispatch rules

    def create_rule(self, info: SIPDispatchRuleInfo) -> SIPDispatchRuleInfo:
        if info.sip_dispatch_rule_id:
            raise validation.invalid("rule id must not be set")
        return self._put_rule(info, new_id("SDR"))

    def replace_rule(self, rule_id: str, info: SIPDispatchRuleInfo) -> SIPDispatchRuleInfo:
        old = _found(self.rules, rule_id, "sip dispatch rule")
        if info.sip_dispatch_rule_id not in {"", rule_id}:
            raise validation.invalid(
                "rule id in the info must be empty or match the id in the update"
            )
        info.created_at.CopyFrom(old.created_at)
        return self._put_rule(info, rule_id)

    def update_rule(self, rule_id: str, diff: SIPDispatchRuleUpdate) -> SIPDispatchRuleInfo:
        info = _copy(_found(self.rules, rule_id, "sip dispatch rule"))
        _update_list(info.trunk_ids, diff, "trunk_ids")
        _update_fields(info, diff, "rule name metadata media media_encryption")
        for name, value in diff.attributes.items():
            if value:
                info.attributes[name] = value
            else:
                info.attributes.pop(name, None)
        return self._put_rule(info, rule_id)

    def _put_rule(self, info: SIPDispatchRuleInfo, rule_id: str) -> SIPDispatchRuleInfo:
        if info.rule.WhichOneof("rule") is None:
            raise validation.invalid("missing rule")
        if matching.pin_of(info):
            # The bridge cannot ask the caller by voice.
            raise TwirpError("unimplemented", "PIN-protected rules are not supported here")
        validation.media(info.media, info.media_encryption)
        stored = _stamped(info, rule_id, "sip_dispatch_rule_id")
        others = [rule for key, rule in self.rules.items() if key != rule_id]
        conflict = matching.conflicting_rule(stored, others)
        if conflict is not None:
            raise validation.invalid(
                "Dispatch rule for the same trunk, inbound number, number, and PIN combination "
                f'already exists in dispatch rule "{conflict.sip_dispatch_rule_id}" '
                f'"{conflict.name or "<blank name>"}"'
            )
        self.rules[rule_id] = stored
        self._changed = True
        return _copy(stored)

    def list_rules(self, request: ListSIPDispatchRuleRequest) -> list[SIPDispatchRuleInfo]:
        return [
            _copy(rule)
            for rule in _in_order(self.rules, request.dispatch_rule_ids)
            if not request.trunk_ids
            or not rule.trunk_ids
            or set(request.trunk_ids) & set(rule.trunk_ids)
        ]

    def delete_rule(self, rule_id: str) -> SIPDispatchRuleInfo:
        removed = _found(self.rules, rule_id, "sip dispatch rule")
        del self.rules[rule_id]
        self._changed = True
        return removed


def _found(items: MutableMapping[str, M], key: str, kind: str) -> M:
    item = items.get(key)
    if item is None:
        raise TwirpError("not_found", f"requested {kind} does not exist")
    return item


def _in_order(items: MutableMapping[str, M], wanted: Iterable[str]) -> list[M]:
    keys = list(wanted)
    return [items[key] for key in keys if key in items] if keys else list(items.values())


def _copy(message: M) -> M:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _stamped(info: M, key: str, id_field: str) -> M:
    stored: Any = _copy(info)
    setattr(stored, id_field, key)
    stored.updated_at.GetCurrentTime()
    if not stored.HasField("created_at"):
        stored.created_at.CopyFrom(stored.updated_at)
    result: M = stored
    return result


def _update_list(target: Any, diff: Any, name: str) -> None:
    if not diff.HasField(name):
        return
    change: ListUpdate = getattr(diff, name)
    if change.clear:
        del target[:]
    if change.set:
        target[:] = list(change.set)
    kept = [value for value in target if value not in change.remove]
    target[:] = kept + [value for value in change.add if value not in kept]


def _update_fields(target: Any, diff: Any, names: str) -> None:
    for name in names.split():
        if not diff.HasField(name):
            continue
        value = getattr(diff, name)
        if isinstance(value, Message):
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)


def _parsed(items: list[Any], message: Callable[[], M], id_field: str) -> dict[str, M]:
    parsed = [json_format.ParseDict(item, message()) for item in items]
    return {str(getattr(item, id_field)): item for item in parsed}


def _dumped(items: Iterable[Message]) -> list[Any]:
    return [json_format.MessageToDict(item, preserving_proto_field_name=True) for item in items]
