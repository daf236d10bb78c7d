"""``python -m dev.providers --port 9000``: run the provider servers until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dev.providers import Control, Providers

# flag → (part of the control document, field, meaning)
_DELAYS = {
    "--stt-final-delay-ms": ("deepgram", "final_delay_ms", "from the endpoint to the final result"),
    "--llm-first-token-ms": ("openai", "first_token_ms", "from a request to its first token"),
    "--llm-token-ms": ("openai", "token_ms", "from one token to the next"),
    "--tts-first-byte-ms": ("cartesia", "first_byte_ms", "from a text to its first audio"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dev.providers",
        description="Serve Deepgram, OpenAI and Cartesia on one local port, with offline speech.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--port", type=int, default=0, help="default: a free port, which is printed"
    )
    parser.add_argument("--control", type=Path, help="a JSON file with the body of PUT /control")
    parser.add_argument("--phrases", type=Path, help="a file of the callers' phrases, one per line")
    parser.add_argument("--recognizers", type=int, default=2, help="number of recogniser processes")
    for flag, (_, _, meaning) in _DELAYS.items():
        parser.add_argument(flag, type=float, help=meaning)
    return parser


def _control(options: argparse.Namespace) -> Control:
    control = Control()
    if options.control is not None:
        control = Control.model_validate_json(options.control.read_bytes())
    if options.phrases is not None:
        lines = options.phrases.read_text().splitlines()
        control.deepgram.phrases = [line.strip() for line in lines if line.strip()]
    for flag, (part, field, _) in _DELAYS.items():
        value: Any = getattr(options, flag[2:].replace("-", "_"))
        if value is not None:
            setattr(getattr(control, part), field, value)
    return control


async def _serve(options: argparse.Namespace, control: Control) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Providers(
        control, host=options.host, port=options.port, recognizers=options.recognizers
    ) as providers:
        print(f"providers: {providers.url}", flush=True)
        await stop.wait()


def main() -> None:
    options = _parser().parse_args()
    try:
        control = _control(options)
    except (OSError, ValidationError) as error:
        print(f"providers: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    asyncio.run(_serve(options, control))


if __name__ == "__main__":
    main()
