"""SIPp, which shares no code with this project, dials an attached number."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from dev.stack import Stack
from tests.conftest import Gateway
from tests.support.inbound_rig import Line, make_agent, outcome

SIPP = shutil.which("sipp")

pytestmark = [
    pytest.mark.stack,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(SIPP is None, reason="not found: sipp (Debian: sip-tester)"),
]

CALLS = 4

_HEAD = """Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:+15105550123@[local_ip]:[local_port]>;tag=[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
Contact: <sip:+15105550123@[local_ip]:[local_port]>
Max-Forwards: 70"""
_SDP = """Content-Type: application/sdp
Content-Length: [len]

v=0
o=caller 1 1 IN IP4 [local_ip]
s=-
c=IN IP4 [media_ip]
t=0 0
m=audio [media_port] RTP/AVP 0
a=rtpmap:0 PCMU/8000"""
# The bridge offers its codecs again after the answer and livekit-sip does not; both are valid.
SCENARIO = f"""<?xml version="1.0" encoding="us-ascii"?>
<scenario name="caller">
  <send retrans="500"><![CDATA[
INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
{_HEAD}
CSeq: 1 INVITE
{_SDP}
]]></send>
  <recv response="100" optional="true"/>
  <recv response="180" optional="true"/>
  <recv response="200" rrs="true"/>
  <send><![CDATA[
ACK [next_url] SIP/2.0
{_HEAD}
CSeq: 1 ACK
Content-Length: 0
]]></send>
  <recv request="INVITE" timeout="1500" ontimeout="1"/>
  <send><![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:+15105550123@[local_ip]:[local_port]>
{_SDP}
]]></send>
  <recv request="ACK"/>
  <pause milliseconds="1500"/>
  <label id="1"/>
  <send retrans="500"><![CDATA[
BYE [next_url] SIP/2.0
{_HEAD}
CSeq: 2 BYE
Content-Length: 0
]]></send>
  <recv response="200"/>
</scenario>
"""


async def test_calls_are_answered_by_the_numbers_agent(
    stack: Stack, gateway: Gateway, tmp_path: Path
) -> None:
    agent = await make_agent(gateway)
    line = await Line.attach(stack, gateway, agent)
    scenario = tmp_path / "caller.xml"
    scenario.write_text(SCENARIO)
    command = [str(SIPP), "-sf", str(scenario), stack.sip_address, "-s", line.number]
    # Two at a time; a call that deviates from the scenario makes the exit code 1.
    command += ["-m", str(CALLS), "-l", "2", "-r", "2"]
    command += ["-i", "127.0.0.1", "-nostdin", "-timeout", "60s"]
    caller = await asyncio.create_subprocess_exec(
        *command,
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(90):
            told, _ = await caller.communicate()
    finally:
        if caller.returncode is None:
            caller.kill()
            await caller.wait()
    assert caller.returncode == 0, told.decode(errors="replace")[-2000:]
    records = [await line.record(index=number) for number in range(CALLS)]
    assert [outcome(record) for record in records] == [("completed", "user_hangup")] * CALLS
    assert {record["agentId"] for record in records} == {agent}
    assert {record["fromNumber"] for record in records} == {"+15105550123"}
    assert {record["toNumber"] for record in records} == {line.number}
    for name in ("id", "roomName", "participantId", "sipCallId"):
        assert len({record[name] for record in records}) == CALLS
