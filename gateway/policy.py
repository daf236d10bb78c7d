"""Which numbers may be called at all, decided before anything is dialled.

A number with a ``+`` is a public one. A bare number of up to six digits is an extension of
whatever stands behind the trunk; a longer bare one is read as every public number that a trunk
could take it for: international without its ``+`` or after 00 or 011, and national as in the
country of the caller ID. Refused, unless DIAL_ALLOW_SPECIAL says otherwise:

    emergency   of any country, bare or behind a country code (911, 00112, +49112)
    short       a country's short numbers behind its country code (+44118118)
    premium     premium-rate numbers (+1900…, +979…), and bare short ones that cost as much

DIAL_BLOCKED_PREFIXES and DIAL_ALLOWED_COUNTRIES narrow it further. What is a number of which
kind comes from libphonenumber's tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber, PhoneNumberType, ShortNumberCost

from core.errors import Forbidden
from core.settings import Settings

MAX_EXTENSION = 6
# No country's emergency number is longer.
_MAX_EMERGENCY = 6


class DialPolicy:
    """``check`` every destination before it is dialled."""

    def __init__(
        self,
        *,
        allowed_countries: frozenset[str] = frozenset(),
        blocked_prefixes: Sequence[str] = (),
        allow_special: bool = False,
    ) -> None:
        """``allowed_countries``: ISO 3166-1 alpha-2; empty: all. Raises ValueError."""
        if unknown := allowed_countries - phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(f"DIAL_ALLOWED_COUNTRIES: unknown {', '.join(sorted(unknown))}")
        self._allowed = allowed_countries
        self._blocked = tuple(blocked_prefixes)
        self._allow_special = allow_special

    @classmethod
    def from_settings(cls, settings: Settings) -> DialPolicy:
        """Raises ValueError naming the setting that is wrong."""
        return cls(
            allowed_countries=settings.dial_allowed_countries,
            blocked_prefixes=settings.dial_blocked_prefixes,
            allow_special=settings.dial_allow_special,
        )

    def check(self, to_number: str, from_number: str = "") -> None:
        """Raises Forbidden ``DESTINATION_NOT_ALLOWED``; see ``objection``."""
        if (why := self.objection(to_number, from_number)) is not None:
            raise Forbidden(
                f"The destination is not allowed: {why}", code="DESTINATION_NOT_ALLOWED"
            )

    def objection(self, to_number: str, from_number: str = "") -> str | None:
        """Why ``to_number`` may not be called from ``from_number``; None: it may.

        Both are an optional ``+`` and digits.
        """
        home = _home(from_number)
        readings = _readings(to_number, home)
        if self._blocked and _begins(to_number, readings, self._blocked):
            return "its prefix is blocked"
        if not self._allow_special and (what := _special(to_number, readings, home)):
            return what
        if self._allowed and not _is_extension(to_number):
            # What is no valid number anywhere counts as what it seems at first sight.
            likely = [one for one in readings if phonenumbers.is_valid_number(one)] or readings[:1]
            if not likely or any(_country(one) not in self._allowed for one in likely):
                return "its country is not among those allowed"
        return None


def load_tables() -> None:
    """Read libphonenumber's tables now; else the first call to a country waits for its file."""
    phonenumbers.PhoneMetadata.load_all()
    for region in phonenumbers.SUPPORTED_SHORT_REGIONS:
        phonenumbers.PhoneMetadata.short_metadata_for_region(region)


def _home(from_number: str) -> str | None:
    """The country of the caller ID; None: an extension, or not to be told."""
    if from_number.startswith("+"):
        return _country(_parse(from_number))
    number = None if _is_extension(from_number) else _parse(f"+{from_number}")
    return _country(number) if number and phonenumbers.is_valid_number(number) else None


def _special(to_number: str, readings: list[PhoneNumber], home: str | None) -> str | None:
    """The kind of number that is refused by default, in words; None: an ordinary one."""
    digits = to_number.removeprefix("+")
    if _is_emergency(digits) or _is_emergency(_without_exit_code(digits)):
        return "it is an emergency number"
    if _is_extension(to_number) and home and _is_premium_short(to_number, home):
        return "it is a premium-rate number"
    for number in readings:
        national = phonenumbers.national_significant_number(number)
        for region in phonenumbers.region_codes_for_country_code(number.country_code or 0):
            if phonenumbers.is_emergency_number(national, region):
                return "it is an emergency number"
            if len(national) <= MAX_EXTENSION and _is_short(national, region):
                return "it is a short number"
        if phonenumbers.number_type(number) == PhoneNumberType.PREMIUM_RATE:
            return "it is a premium-rate number"
    return None


def _readings(to_number: str, home: str | None) -> list[PhoneNumber]:
    """The public numbers a trunk may take it for, the likeliest first."""
    if to_number.startswith("+"):
        found = [_parse(to_number)]
    elif _is_extension(to_number):
        found = []
    else:
        found = [_parse(f"+{_without_exit_code(to_number)}")]
        national = _parse(to_number, home) if home is not None else None
        if national is not None and phonenumbers.is_valid_number(national):
            found.append(national)
    return [number for number in found if number is not None]


def _begins(to_number: str, readings: list[PhoneNumber], prefixes: tuple[str, ...]) -> bool:
    forms = [
        phonenumbers.format_number(one, phonenumbers.PhoneNumberFormat.E164) for one in readings
    ]
    return any(form.startswith(prefixes) for form in (to_number, *forms))


def _is_extension(to_number: str) -> bool:
    return not to_number.startswith("+") and len(to_number) <= MAX_EXTENSION


@lru_cache(maxsize=4096)
def _is_emergency(digits: str) -> bool:
    """In any country: which one the trunk is in is not known."""
    return len(digits) <= _MAX_EMERGENCY and any(
        phonenumbers.is_emergency_number(digits, region)
        for region in phonenumbers.SUPPORTED_SHORT_REGIONS
    )


def _is_short(national: str, region: str) -> bool:
    number = _parse(national, region)
    return number is not None and phonenumbers.is_valid_short_number_for_region(number, region)


def _is_premium_short(digits: str, region: str) -> bool:
    number = _parse(digits, region)
    return number is not None and (
        phonenumbers.expected_cost_for_region(number, region) == ShortNumberCost.PREMIUM_RATE
    )


def _without_exit_code(digits: str) -> str:
    """Without the 011 of North America or the 00 of most others."""
    return digits.removeprefix("011") if digits.startswith("011") else digits.removeprefix("00")


def _parse(number: str, region: str | None = None) -> PhoneNumber | None:
    try:
        return phonenumbers.parse(number, region)
    except NumberParseException:
        return None


def _country(number: PhoneNumber | None) -> str | None:
    """ISO 3166-1 alpha-2; of an invalid number the country of its country code."""
    if number is None:
        return None
    exact = phonenumbers.region_code_for_number(number)
    return exact or phonenumbers.region_code_for_country_code(number.country_code or 0)
