"""A minimal livekit-agents worker, written as LiveKit's own documentation shows.

The peer of the benchmarks. It has the same plugins, models and providers as our worker and the
configured endpointing silence (``ENDPOINTING_MS``); everything else is at the library's defaults.
The library and its plugins read LIVEKIT_URL and the keys from the environment. The phone to dial
is in the job's metadata (``{"address", "to", "from"}``), as in LiveKit's outbound example. A job
without metadata comes from the dispatch rule of an inbound call.

    python -m dev.peers.bare_worker start
"""

from __future__ import annotations

import json

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, JobProcess, cli
from livekit.api import LiveKitAPI
from livekit.plugins import cartesia, deepgram, openai, silero
from livekit.protocol.sip import CreateSIPParticipantRequest, SIPOutboundConfig

from core.settings import Settings, load

AGENT_NAME = "bare"
GREETING = "Hello, how can I help you?"
INSTRUCTIONS = "You are a helpful voice assistant on the phone."

# As many idle processes as our worker. LiveKit offers no jobs to a worker at full load, and this
# machine also runs the phones and the providers, so the reported load is constantly 0.
server = AgentServer(
    port=0,
    num_idle_processes=load().worker_idle_processes,
    load_threshold=float("inf"),
    load_fnc=lambda: 0.0,
)


def prewarm(process: JobProcess) -> None:
    process.userdata["vad"] = silero.VAD.load()


server.setup_fnc = prewarm


async def dial(ctx: JobContext, settings: Settings, phone: dict[str, str]) -> None:
    async with LiveKitAPI(settings.sip_http_url) as livekit:
        await livekit.sip.create_sip_participant(
            CreateSIPParticipantRequest(
                trunk=SIPOutboundConfig(hostname=phone["address"]),
                sip_call_to=phone["to"],
                sip_number=phone["from"],
                room_name=ctx.room.name,
                participant_identity="phone",
                wait_until_answered=True,
            )
        )
    await ctx.wait_for_participant(identity="phone")


@server.rtc_session(agent_name=AGENT_NAME)
async def entrypoint(ctx: JobContext) -> None:
    settings = load()
    await ctx.connect()
    session: AgentSession[None] = AgentSession(
        stt=deepgram.STT(model="nova-3", base_url=settings.deepgram_base_url),
        llm=openai.LLM(model="gpt-4.1-mini", base_url=settings.openai_base_url),
        tts=cartesia.TTS(model="sonic-3", base_url=settings.cartesia_base_url),
        vad=ctx.proc.userdata["vad"],
        turn_detection="vad",
        min_endpointing_delay=settings.endpointing_ms / 1000,
    )
    await session.start(agent=Agent(instructions=INSTRUCTIONS), room=ctx.room)
    if ctx.job.metadata:
        await dial(ctx, settings, json.loads(ctx.job.metadata))
    await session.say(GREETING)


if __name__ == "__main__":
    cli.run_app(server)
