"""Goals, and whether they were reached."""

from __future__ import annotations


def at_most(name: str, limit: float, measured: float, unit: str = "") -> str:
    return _goal(name, "≤", limit, measured, unit, measured <= limit)


def at_least(name: str, limit: float, measured: float, unit: str = "") -> str:
    return _goal(name, "≥", limit, measured, unit, measured >= limit)


def _goal(name: str, sign: str, limit: float, measured: float, unit: str, reached: bool) -> str:
    verdict = "reached" if reached else "missed"
    shown = f"{measured:.0f}" if measured >= 100 else f"{measured:.3g}"
    return f"{name} {sign} {limit:g}{unit}: {verdict}, {shown}{unit}"
