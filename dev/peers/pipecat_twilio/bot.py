"""A Pipecat bot on Twilio Media Streams, one pipeline for each WebSocket.

The peer of the benchmark ``streams``: Pipecat's example ``twilio-chatbot`` with our providers and
without recording and metrics. All audio is 8 kHz, Twilio's rate, so nothing is resampled. There
are no RTVI messages, which are for Pipecat's own clients, and no turn tracking, which only
reports; the log begins at INFO, not at DEBUG.

The turns are tuned to the benchmark:

- The VAD's ``stop_secs`` is the endpointing silence (0.2 s is its default and the documentation's
  advice), and a turn ends with it: without a turn-detection model, which the other sides do not
  have, and without a further ``user_speech_timeout``.
- ``ttfs_p99_latency`` is that of these providers, as the documentation advises: the transcript is
  there when the endpointing silence is over. With ``--default-stt-latency`` it is Pipecat's
  default for Deepgram's cloud, 0.35 s, and a turn ends so long after the speech.

It imports nothing of this repository: it runs with another environment's Python.

    .cache/peers/pipecat/bin/python dev/peers/pipecat_twilio/bot.py --port 8080 \
        --providers http://127.0.0.1:9000 --endpointing-ms 200 --greeting … --instructions …
"""

from __future__ import annotations

import argparse
import sys

import uvicorn
from fastapi import FastAPI, WebSocket
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.services.cartesia.tts import CartesiaTTSService
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.stt_latency import DEEPGRAM_TTFS_P99
from pipecat.transports.websocket.fastapi import (
    FastAPIWebsocketParams,
    FastAPIWebsocketTransport,
)
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

RATE = 8000  # Hz, of everything
KEY = "local"  # the simulated providers accept any


class Bot:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._silence_s = options.endpointing_ms / 1000

    async def stream(self, websocket: WebSocket) -> None:
        await websocket.accept()
        _, call = await parse_telephony_websocket(websocket)
        transport = FastAPIWebsocketTransport(
            websocket=websocket,
            params=FastAPIWebsocketParams(
                audio_in_enabled=True,
                audio_out_enabled=True,
                serializer=TwilioFrameSerializer(
                    stream_sid=call.stream_id,
                    params=TwilioFrameSerializer.InputParams(auto_hang_up=False),
                ),
            ),
        )
        worker = PipelineWorker(
            self._pipeline(transport),
            params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE),
            enable_rtvi=False,
            enable_turn_tracking=False,
        )

        async def connected(_transport: object, _client: object) -> None:
            await worker.queue_frames([TTSSpeakFrame(self._options.greeting)])

        async def disconnected(_transport: object, _client: object) -> None:
            await worker.cancel()

        transport.add_event_handler("on_client_connected", connected)
        transport.add_event_handler("on_client_disconnected", disconnected)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()

    def _pipeline(self, transport: FastAPIWebsocketTransport) -> Pipeline:
        providers = self._options.providers
        stt = DeepgramSTTService(
            api_key=KEY,
            base_url=providers,
            settings=DeepgramSTTService.Settings(model="nova-3"),
            ttfs_p99_latency=(
                DEEPGRAM_TTFS_P99 if self._options.default_stt_latency else self._silence_s
            ),
        )
        llm = OpenAILLMService(
            api_key=KEY,
            base_url=f"{providers}/v1",
            settings=OpenAILLMService.Settings(
                model="gpt-4.1-mini", system_instruction=self._options.instructions
            ),
        )
        tts = CartesiaTTSService(
            api_key=KEY,
            url=f"{providers.replace('http', 'ws', 1)}/tts/websocket",
            settings=CartesiaTTSService.Settings(model="sonic-3", voice="agent"),
        )
        stop = SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.0)
        user, assistant = LLMContextAggregatorPair(
            LLMContext(),
            user_params=LLMUserAggregatorParams(
                vad_analyzer=SileroVADAnalyzer(params=VADParams(stop_secs=self._silence_s)),
                user_turn_strategies=UserTurnStrategies(stop=[stop]),
            ),
        )
        return Pipeline([transport.input(), stt, user, llm, tts, transport.output(), assistant])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--providers", required=True, help="the base URL of all three")
    parser.add_argument("--endpointing-ms", type=int, required=True)
    parser.add_argument("--greeting", required=True)
    parser.add_argument("--instructions", required=True)
    parser.add_argument("--default-stt-latency", action="store_true")
    options = parser.parse_args()
    logger.remove()
    logger.add(sys.stderr, level="INFO")
    app = FastAPI()
    app.add_api_websocket_route("/stream", Bot(options).stream)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
