"""The destination policy: decide before dialling whether a destination may be called at all.

Calls, transfers and dry runs are all checked here. A destination is a number, or the URI that a
phone is referred to. A bare number of up to six digits is an extension of the system behind the
trunk. Any other number is checked as every public number that a switch could read it as
(sip.numbering). Refused, unless DIAL_ALLOW_SPECIAL is set:

    emergency   numbers of any country, bare or after a country code (911, 00112, +49112); for
                extensions, if the trunk's country is known, only its own, 112, 911 and 999
    short       a country's short numbers after its country code (+44118118)
    premium     premium-rate numbers (+1900…, +979…), and bare short numbers that cost as much
    unreadable  a tenant's bare number without a country code, if the trunk's country is not
                known; an operator knows what is behind the trunk

Premium-rate numbers are also refused with extra digits at the end, or with the last digits
missing. DIAL_BLOCKED_PREFIXES and DIAL_ALLOWED_COUNTRIES restrict destinations further.

The trunk's country is DIAL_HOME_COUNTRY. A country that a tenant suggests, by a caller ID or a
trunk of its own, adds readings to the operator's and never removes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import phonenumbers

from core.errors import Forbidden
from core.settings import Settings
from sip.addresses import called_number
from sip.numbering import (
    Number,
    Readings,
    begins_emergency_at,
    international,
    national,
    reaches_emergency,
    read,
)

MAX_EXTENSION = 6

_EMERGENCY = "it is an emergency number"
_SHORT = "it is a short number"
_PREMIUM = "it is a premium-rate number"
_UNREADABLE = (
    "its country cannot be told without DIAL_HOME_COUNTRY: write it with + and its country code"
)


class DialPolicy:
    """``check`` every destination before it is dialled."""

    def __init__(
        self,
        *,
        home_country: str | None = None,
        allowed_countries: frozenset[str] = frozenset(),
        blocked_prefixes: Sequence[str] = (),
        allow_special: bool = False,
    ) -> None:
        """Countries are ISO 3166-1 alpha-2; an empty ``allowed_countries`` allows all.

        Raises ValueError.
        """
        for name, countries in (
            ("DIAL_HOME_COUNTRY", {home_country} - {None}),
            ("DIAL_ALLOWED_COUNTRIES", allowed_countries),
        ):
            if unknown := countries - phonenumbers.SUPPORTED_REGIONS:
                raise ValueError(f"{name}: unknown {', '.join(sorted(map(str, unknown)))}")
        self._home = home_country
        self._allowed = allowed_countries
        self._blocked = tuple(blocked_prefixes)
        self._allow_special = allow_special

    @classmethod
    def from_settings(cls, settings: Settings) -> DialPolicy:
        """Raise ValueError naming the setting that is wrong."""
        return cls(
            home_country=settings.dial_home_country,
            allowed_countries=settings.dial_allowed_countries,
            blocked_prefixes=settings.dial_blocked_prefixes,
            allow_special=settings.dial_allow_special,
        )

    def check(
        self,
        destination: str,
        *,
        from_number: str = "",
        trunk_country: str | None = None,
        tenant: bool = True,
    ) -> None:
        """Raise Forbidden ``DESTINATION_NOT_ALLOWED`` if there is an ``objection``."""
        why = self.objection(
            destination, from_number=from_number, trunk_country=trunk_country, tenant=tenant
        )
        if why is not None:
            raise Forbidden(
                f"The destination is not allowed: {why}", code="DESTINATION_NOT_ALLOWED"
            )

    def objection(
        self,
        destination: str,
        *,
        from_number: str = "",
        trunk_country: str | None = None,
        tenant: bool = True,
    ) -> str | None:
        """Return why ``destination`` may not be called; None: it may.

        ``destination``: a number (an optional ``+`` and digits), or a ``tel:`` or ``sip:`` URI of
        sip.addresses. ``from_number``: the caller ID, if any. ``trunk_country``: the country that
        the trunk names, if any. ``tenant``: True for a tenant's call.
        """
        dialled = called_number(destination) if ":" in destination else destination
        if not dialled:
            return None  # a name at a host, not a number
        if dialled.startswith("+0"):
            return "no country code begins with 0"
        home = self._home or trunk_country
        guesses = tuple(place for place in (trunk_country, _country_of(from_number)) if place)
        if _is_extension(dialled):
            readings = Readings()
        else:
            readings = read(dialled, home, guesses)
        if self._blocked and _begins(dialled, readings, self._blocked):
            return "its prefix is blocked"
        if not self._allow_special:
            if _is_extension(dialled):
                trunk = {place: None for place in (home, trunk_country) if place}
                what = _special_extension(dialled, tuple(trunk), guesses)
            else:
                what = _special(dialled, readings, home)
                if what is None and tenant and home is None:
                    what = _unreadable(dialled, readings)
            if what is not None:
                return what
        if self._allowed and not _is_extension(dialled) and not self._in_allowed(dialled, readings):
            return "its country is not among those allowed"
        return None

    def _in_allowed(self, dialled: str, readings: Readings) -> bool:
        # The valid readings; else the valid prefixes that a switch would connect without waiting
        # for more digits; else the most obvious reading.
        known = (*readings.abroad, *readings.home, *readings.far)
        likely = (
            [one for one in known if one.valid]
            or [one for other in known if (one := other.reached()) is not None]
            or (readings.abroad or (() if dialled.startswith("+") else readings.home))[:1]
        )
        guessed = [one for one in readings.guessed if one.valid]
        return bool(likely) and all(one.region in self._allowed for one in (*likely, *guessed))


def _special(dialled: str, readings: Readings, home: str | None) -> str | None:
    """Return the kind of number, in words, if it is refused by default; None: an ordinary one."""
    settled = readings.settled
    abroad = readings.abroad
    if readings.local:
        # A switch adds its own area code, so no shorter number abroad is meant.
        abroad = tuple(one for one in abroad if one.valid)
    if not settled and reaches_emergency(dialled.removeprefix("+")):
        return _EMERGENCY
    # A number that is valid as it stands is not read as a shorter one with extra digits, except
    # on a trunk whose country has the shorter one.
    for numbers, whole in (
        (abroad, settled),
        (readings.home, readings.settled_home),
        ((*readings.guessed, *readings.far), settled),
    ):
        for number in numbers:
            if (what := _kind(number, whole=whole)) is not None:
                return what
    if not settled and not any(one.valid for one in readings.home):
        if any(one.begins_short for one in abroad):
            return _SHORT
        for number in (*abroad, *readings.home):
            what = _kind_to_be(number)
            if what == _EMERGENCY and home is not None and readings.local:
                # Other countries with the same country code have other emergency numbers.
                what = _EMERGENCY if begins_emergency_at(home, dialled) else None
            if what is not None:
                return what
    return None


def _unreadable(dialled: str, readings: Readings) -> str | None:
    known = dialled.startswith("+") or any(one.well_formed for one in readings.abroad)
    return None if known else _UNREADABLE


@lru_cache(maxsize=4096)
def _kind(number: Number, *, whole: bool) -> str | None:
    """Return the kind of number that is reached; ``whole``: only if all digits are needed."""
    reached = number if number.valid else number.reached()
    if whole and reached is not number:
        return None
    if number.emergency:
        return _EMERGENCY
    if number.short and len(number.national) <= MAX_EXTENSION:
        return _SHORT
    return _PREMIUM if reached is not None and reached.premium else None


@lru_cache(maxsize=4096)
def _kind_to_be(number: Number) -> str | None:
    """Return the kind of number that an invalid number begins like."""
    if number.reached() is not None:
        return None
    if number.begins_emergency:
        return _EMERGENCY
    return _PREMIUM if number.begins_premium_short or number.may_become_premium else None


def _special_extension(digits: str, trunk: tuple[str, ...], guesses: Sequence[str]) -> str | None:
    if reaches_emergency(digits, at=trunk):
        return _EMERGENCY
    countries = (*trunk, *guesses)
    numbers = (number for country in countries for number in national(digits, country))
    return _PREMIUM if any(one.premium or one.premium_short for one in numbers) else None


def _begins(dialled: str, readings: Readings, prefixes: tuple[str, ...]) -> bool:
    return any(form.startswith(prefixes) for form in (dialled, *map(str, readings)))


def _is_extension(dialled: str) -> bool:
    return not dialled.startswith("+") and len(dialled) <= MAX_EXTENSION


@lru_cache(maxsize=4096)
def _country_of(caller: str) -> str | None:
    """Return the country of a caller ID; None: an extension, or undecidable."""
    number = None if _is_extension(caller) else international(caller.removeprefix("+"))
    if number is None or not (caller.startswith("+") or number.valid):
        return None
    return number.region if number.region in phonenumbers.SUPPORTED_REGIONS else None
