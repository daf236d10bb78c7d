"""The page /try/{agentId} in a real browser, with a WAV file as its microphone."""

from __future__ import annotations

import re
import shutil
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from dev.scenario import OPENING
from dev.speech import CALLER_VOICE, synthesize

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

RATE = 48_000  # Hz
SLOWLY = 20_000  # ms, for what depends on the agent


def write_microphone(path: Path) -> None:
    """Write silence for the greeting, the question, and silence for the answer; it is repeated."""
    question = synthesize(OPENING, CALLER_VOICE, RATE).pcm
    before, after = (np.zeros(seconds * RATE, np.int16) for seconds in (9, 7))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.concatenate([before, question, after]).tobytes())


@asynccontextmanager
async def open_browser(folder: Path) -> AsyncIterator[Browser]:
    microphone = folder / "microphone.wav"
    write_microphone(microphone)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}",
                "--autoplay-policy=user-gesture-required",  # as people's browsers do
                "--disable-gpu",
            ],
        )
        yield browser
        await browser.close()


class Visit:
    """A tab with the page. ``faults``: its scripts' errors, and what its policy refused."""

    def __init__(self, context: BrowserContext, page: Page, address: str) -> None:
        self.context = context
        self.page = page
        self.address = address
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._said)

    def _said(self, message: Any) -> None:
        # LiveKit's library logs here, too, and so do refused requests, which the page shows.
        if "Content Security Policy" in message.text:
            self.faults.append(message.text)

    async def start(self) -> None:
        await self.page.get_by_role("button", name="Start the call").click()

    async def says(self, text: str | re.Pattern[str], timeout: float = 10_000) -> None:
        await expect(self.page.get_by_role("status")).to_have_text(text, timeout=timeout)

    async def complains(self, text: str) -> None:
        await expect(self.page.get_by_role("alert")).to_contain_text(text)

    async def hear(self, who: str, text: str) -> None:
        line = self.page.get_by_role("listitem").filter(has_text=who).filter(has_text=text)
        await expect(line.first).to_be_visible(timeout=SLOWLY)


@asynccontextmanager
async def visiting(browser: Browser, address: str) -> AsyncIterator[Visit]:
    context = await browser.new_context(permissions=["microphone"])
    visit = Visit(context, await context.new_page(), address)
    yield visit
    await context.close()
    assert visit.faults == []
