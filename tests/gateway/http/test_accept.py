"""Tests of gateway.http.accept: the type that a client prefers."""

from __future__ import annotations

import pytest

from gateway.http.accept import preferred

pytestmark = pytest.mark.unit

OFFERS = ("application/json", "text/vtt", "text/plain")


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/vtt", "text/vtt"),
        ("TEXT/VTT; charset=utf-8", "text/vtt"),
        ("text/*", "text/vtt"),
        ("text/plain, */*", "application/json"),
        ("text/plain, */*;q=0.1", "text/plain"),
        ("application/json;q=0.5, text/plain;q=0.9, text/vtt;q=0.8", "text/plain"),
        ("text/*, text/vtt;q=0", "text/plain"),
        ("*/*, application/json;q=0.2", "text/vtt"),
        ("text/vtt;q=nan, text/plain;q=0.1", "text/plain"),
        ("text/vtt;q=7, text/plain;q=0.1", "text/plain"),
        ("image/png", "application/json"),
        (",;,q=1", "application/json"),
    ],
)
def test_preferred(header: str | None, chosen: str) -> None:
    assert preferred(header, OFFERS) == chosen
