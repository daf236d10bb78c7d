"""One WAV file calls an agent, another gets the answer: socket_client.py AGENT_ID in.wav out.wav"""

import asyncio
import os
import sys
import time
import wave

import aiohttp

GATEWAY = os.environ.get("SWITCHROOM_URL", "http://127.0.0.1:8080")
TOKEN = os.environ.get("SWITCHROOM_TOKEN")
HEADERS = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}


async def speak(socket: aiohttp.ClientWebSocketResponse, path: str) -> None:
    with wave.open(path) as file:  # 16 kHz, 16 bit, mono; then 10 s of silence for the answer
        speech = file.readframes(file.getnframes()) + bytes(10 * 32_000)
    begin = time.monotonic()
    for at in range(0, len(speech), 640):  # 20 ms
        await socket.send_bytes(speech[at : at + 640])
        await asyncio.sleep(begin + at / 32_000 - time.monotonic())
    await socket.send_json({"type": "end"})


async def call(agent_id: str, question: str, answer: str) -> None:
    url = f"{GATEWAY}/v1/agents/{agent_id}/session"
    async with aiohttp.ClientSession(headers=HEADERS) as http, http.ws_connect(url) as socket:
        with wave.open(answer, "wb") as heard:
            heard.setparams((1, 2, 16_000, 0, "NONE", ""))
            speaking = asyncio.create_task(speak(socket, question))
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    heard.writeframes(message.data)
                elif (event := message.json())["type"] in {"transcript", "error", "ended"}:
                    print(event)
            speaking.cancel()


asyncio.run(call(*sys.argv[1:]))
