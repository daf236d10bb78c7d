"""The public numbers that a dialled string may reach, by libphonenumber's tables.

A switch reads digits by its own rules: with or without the country code, behind an exit code
("00", "011", "8~10", …) or a trunk prefix ("0"). Most ignore digits after a complete number.
The switch behind a trunk is not known, so a string has several readings.
Pure; gateway.calls.policy judges them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import phonenumbers
from phonenumbers import NumberParseException, PhoneMetadata, PhoneNumber, PhoneNumberDesc

# phonenumbers.parse refuses a longer one.
_MAX_NATIONAL = 17
_EXIT_CODES = ("00", "011")
# Japan's carrier codes (dialled before 010), which the tables leave out.
_MORE_EXIT_CODES = r"00\d{2,4}010"
_LONGEST_EXIT_CODE = 9
# Switches and phones of many countries connect these besides their own.
_BEST_KNOWN_EMERGENCY = ("112", "911", "999")
_CACHED = 4096


@dataclass(frozen=True, slots=True)
class Number:
    """``national``: all digits that were dialled behind the country code."""

    country_code: int
    national: str

    def __str__(self) -> str:
        return f"+{self.country_code}{self.national}"

    @property
    def valid(self) -> bool:
        """True if the number, as it stands, can be assigned to a subscriber."""
        return _plan(self.country_code).is_valid(self.national)

    @property
    def premium(self) -> bool:
        return _plan(self.country_code).is_premium(self.national)

    @property
    def well_formed(self) -> bool:
        """True if it looks like a number of its country, even an unassigned one like +1555…"""
        return _plan(self.country_code).general.fullmatch(self.national) is not None

    @property
    def may_become_premium(self) -> bool:
        """True if it is too short, and more digits would make it a premium-rate number."""
        plan = _plan(self.country_code)
        return any(
            plan.is_premium(self.national + digit * (length - len(self.national)))
            for length in plan.lengths
            if length > len(self.national)
            for digit in "0123456789"
        )

    @property
    def emergency(self) -> bool:
        return _plan(self.country_code).emergency.fullmatch(self.national) is not None

    @property
    def begins_emergency(self) -> bool:
        """True if more digits follow, but the country's switches connect an emergency service."""
        return _plan(self.country_code).emergency.match(self.national) is not None and any(
            phonenumbers.connects_to_emergency_number(self.national, region)
            for region in _regions(self.country_code)
        )

    @property
    def short(self) -> bool:
        """True for a short number, which can be dialled within the country only."""
        return _plan(self.country_code).short.fullmatch(self.national) is not None

    @property
    def begins_short(self) -> bool:
        """True for service codes (118118) only: text-message codes begin like other numbers."""
        matched = _plan(self.country_code).short.match(self.national) is not None
        return matched and self.national.startswith("1") and self.reached() is None

    @property
    def premium_short(self) -> bool:
        return _plan(self.country_code).premium_short.fullmatch(self.national) is not None

    @property
    def begins_premium_short(self) -> bool:
        return _plan(self.country_code).premium_short.match(self.national) is not None

    @property
    def region(self) -> str:
        """Its country; for an invalid number, the main country of its country code."""
        found = phonenumbers.region_code_for_number(self._parsed()) if self.valid else None
        return found or _regions(self.country_code)[0]

    def reached(self) -> Number | None:
        """Return the longest valid number that it begins with: a switch may connect that one."""
        plan = _plan(self.country_code)
        for length in plan.lengths:
            if length <= len(self.national) and plan.is_valid(self.national[:length]):
                return Number(self.country_code, self.national[:length])
        return None

    def _parsed(self) -> PhoneNumber:
        zeros = len(self.national) - len(self.national.lstrip("0"))
        return PhoneNumber(
            country_code=self.country_code,
            national_number=int(self.national),
            italian_leading_zero=zeros > 0 or None,
            number_of_leading_zeros=zeros if zeros > 1 else None,
        )


@dataclass(frozen=True, slots=True)
class Readings:
    """The numbers that a string may mean.

    ``abroad``: with a country code, bare or behind a usual exit code, the likeliest first.
    ``home``: national, in the trunk's country. ``guessed``: national, in other countries where
    the trunk may be. ``far``: behind one or more exit codes of any country, with a trunk prefix
    after the country code ("+44 (0)20 …"), or behind the 0 for an outside line.
    """

    abroad: tuple[Number, ...] = ()
    home: tuple[Number, ...] = ()
    guessed: tuple[Number, ...] = ()
    far: tuple[Number, ...] = ()
    # The string is a valid number as it stands: in the trunk's country, or in any.
    settled_home: bool = False
    settled: bool = False
    # It is as long as a number that is dialled within a city of the trunk's country.
    local: bool = False

    def __iter__(self) -> Iterator[Number]:
        return iter((*self.abroad, *self.home, *self.guessed, *self.far))


def read(dialled: str, home: str | None, guesses: Iterable[str] = ()) -> Readings:
    """Return the readings of ``dialled``, an optional ``+`` and digits.

    ``home`` and ``guesses``: ISO 3166-1 alpha-2. A valid number with a ``+`` has one reading; a
    number that is valid as it stands has no ``far`` readings.
    """
    digits = dialled.removeprefix("+")
    as_written = international(digits)
    if dialled.startswith("+") and as_written is not None and as_written.valid:
        return Readings(abroad=(as_written,), settled=True)
    usual = [international(rest) for rest in _behind_usual_exit_codes(digits, home)]
    abroad = tuple(one for one in (as_written, *usual) if one is not None)
    at_home = () if home is None else national(digits, home)
    guessed = tuple(one for place in guesses if place != home for one in national(digits, place))
    whole = {one.country_code for one in abroad if one.valid}
    settled_home = home is not None and (
        _is_dialled_at(home, dialled) or phonenumbers.country_code_for_region(home) in whole
    )
    local = home is not None and not usual and _is_local(home, dialled)
    if settled_home or whole:
        return Readings(abroad, at_home, guessed, (), settled_home, settled=True, local=local)
    beyond = (international(rest) for rest in behind_exit_codes(digits))
    far = [one for one in beyond if one is not None and one not in abroad]
    coded = far if local else [*abroad, *far]
    far += [one for other in coded for one in _without_trunk_prefix(other)]
    if home is not None and (rest := digits.lstrip("0")):
        # Also behind the 0 for an outside line.
        far += national(rest, home)
    return Readings(abroad, at_home, guessed, tuple(far), local=local)


@lru_cache(maxsize=_CACHED)
def international(digits: str) -> Number | None:
    """Split ``digits`` into country code and number; None if they begin with no country code."""
    for length in (1, 2, 3):
        code, rest = digits[:length], digits[length:]
        if rest and not code.startswith("0") and _regions(int(code)):
            return Number(int(code), rest)
    return None


def _without_trunk_prefix(number: Number) -> Iterator[Number]:
    prefix = _plan(number.country_code).trunk_prefix
    if prefix is not None and number.national.startswith(prefix) and number.national != prefix:
        yield Number(number.country_code, number.national.removeprefix(prefix))


@lru_cache(maxsize=_CACHED)
def national(digits: str, region: str) -> tuple[Number, ...]:
    """Read ``digits`` as dialled within a country: as they are, and without prefixes."""
    code = phonenumbers.country_code_for_region(region)
    forms = [digits]
    prefix = _plan(code).trunk_prefix
    if prefix is not None and digits.startswith(prefix) and digits != prefix:
        forms.append(digits.removeprefix(prefix))
    try:
        # parse also strips carrier codes.
        parsed = phonenumbers.parse(digits[:_MAX_NATIONAL], region)
    except NumberParseException:
        pass
    else:
        if parsed.country_code == code:
            forms.append(phonenumbers.national_significant_number(parsed))
    return tuple(Number(code, form) for form in dict.fromkeys(forms))


def _is_dialled_at(region: str, dialled: str) -> bool:
    """Return True if a phone there would reach a number: with the trunk prefix, if it has one."""
    code = phonenumbers.country_code_for_region(region)
    prefix = _plan(code).trunk_prefix or ""
    # North America's trunk prefix is the country code, and may be left out.
    complete = dialled.startswith(prefix) or code == 1
    bare = not dialled.startswith("+")
    return bare and complete and any(one.valid for one in national(dialled, region))


def begins_emergency_at(region: str, digits: str) -> bool:
    """Return True if a switch of this country connects ``digits`` to an emergency service."""
    return phonenumbers.connects_to_emergency_number(digits, region)


def _is_local(region: str, dialled: str) -> bool:
    table = PhoneMetadata.metadata_for_region(region)
    general = table.general_desc if table is not None else None
    lengths = general.possible_length_local_only if general is not None else ()
    return not dialled.startswith("+") and len(dialled) in lengths


@lru_cache(maxsize=_CACHED)
def behind_exit_codes(digits: str) -> tuple[str, ...]:
    """Return all rests of ``digits`` behind one or more exit codes of any country."""
    found: dict[str, None] = {}
    waiting = [digits]
    while waiting:
        text = waiting.pop()
        for rest in _rests(text, _any_exit_code()):
            if rest not in found:
                found[rest] = None
                waiting.append(rest)
    return tuple(found)


@lru_cache(maxsize=_CACHED)
def reaches_emergency(digits: str, at: tuple[str, ...] = ()) -> bool:
    """Return True if ``digits`` reach an emergency service, also behind exit codes.

    ``at``: by the numbers of these countries and the best-known ones; empty: of all countries.
    """
    emergency = _emergency_at(at) if at else _any_emergency()
    if any(emergency.fullmatch(rest) for rest in (digits, *behind_exit_codes(digits))):
        return True
    numbers = map(international, _behind_usual_exit_codes(digits, None))
    return any(number is not None and number.emergency for number in numbers)


def load_tables() -> None:
    """Read libphonenumber's tables now, so that no first call to a country waits for its file."""
    PhoneMetadata.load_all()
    for code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE:
        _plan(code)
    _any_exit_code()
    _any_emergency()


def _behind_usual_exit_codes(digits: str, home: str | None) -> list[str]:
    rests = [digits.removeprefix(code) for code in _EXIT_CODES if digits.startswith(code)]
    if home is not None:
        rests += _rests(digits, _exit_code_of(home))
    return rests


def _rests(digits: str, exit_code: re.Pattern[str]) -> list[str]:
    longest = min(_LONGEST_EXIT_CODE, len(digits) - 1)
    return [
        digits[length:]
        for length in range(1, longest + 1)
        if exit_code.fullmatch(digits, 0, length)
    ]


class _Plan:
    """The numbers behind a country code, which several countries may share."""

    def __init__(self, country_code: int) -> None:
        tables = list(_tables(country_code))
        general = [table.general_desc for table in tables if table.general_desc is not None]
        self.general = _any_of(_pattern(desc) for desc in general)
        self.lengths = sorted({n for desc in general for n in desc.possible_length}, reverse=True)
        self.trunk_prefix = tables[0].national_prefix
        short = list(_short_tables(_regions(country_code)))
        self.emergency = _any_of(_pattern(table.emergency) for table in short)
        self.short = _any_of(_pattern(table.short_code) for table in short)
        self.premium_short = _any_of(_pattern(table.premium_rate) for table in short)
        self._premium = _any_of(_typed(table, (table.premium_rate,)) for table in tables)
        self._valid = _any_of(
            _typed(
                table,
                (
                    table.fixed_line,
                    table.mobile,
                    table.toll_free,
                    table.premium_rate,
                    table.shared_cost,
                    table.personal_number,
                    table.voip,
                    table.pager,
                    table.uan,
                    table.voicemail,
                ),
            )
            for table in tables
        )

    def is_valid(self, national: str) -> bool:
        return self._valid.fullmatch(national) is not None

    def is_premium(self, national: str) -> bool:
        return self._premium.fullmatch(national) is not None


@cache
def _plan(country_code: int) -> _Plan:
    return _Plan(country_code)


def _tables(country_code: int) -> Iterator[PhoneMetadata]:
    for region in _regions(country_code):
        if region == phonenumbers.REGION_CODE_FOR_NON_GEO_ENTITY:
            table = PhoneMetadata.metadata_for_nongeo_region(country_code)
        else:
            table = PhoneMetadata.metadata_for_region(region)
        if table is not None:
            yield table


def _short_tables(regions: Iterable[str]) -> Iterator[PhoneMetadata]:
    for region in regions:
        table = PhoneMetadata.short_metadata_for_region(region)
        if table is not None:
            yield table


def _regions(country_code: int) -> tuple[str, ...]:
    return tuple(phonenumbers.region_codes_for_country_code(country_code))


def _typed(table: PhoneMetadata, kinds: Iterable[PhoneNumberDesc | None]) -> str:
    """Return a pattern of numbers of these kinds that also match the country's general pattern."""
    general = _pattern(table.general_desc)
    either = "|".join(f"(?:{one})" for one in map(_pattern, kinds) if one)
    return rf"(?=(?:{general})\Z)(?:{either})" if general and either else ""


def _pattern(kind: PhoneNumberDesc | None) -> str:
    return (kind.national_number_pattern or "") if kind is not None else ""


def _any_of(patterns: Iterable[str | None]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{one})" for one in patterns if one) or r"(?!)", re.ASCII)


@cache
def _exit_code_of(region: str) -> re.Pattern[str]:
    table = PhoneMetadata.metadata_for_region(region)
    return _any_of([table.international_prefix if table is not None else None])


@cache
def _any_exit_code() -> re.Pattern[str]:
    tables = [PhoneMetadata.metadata_for_region(one) for one in phonenumbers.SUPPORTED_REGIONS]
    patterns = {table.international_prefix for table in tables if table is not None}
    return _any_of([*_EXIT_CODES, _MORE_EXIT_CODES, *sorted(filter(None, patterns))])


@cache
def _any_emergency() -> re.Pattern[str]:
    return _emergency_at(tuple(phonenumbers.SUPPORTED_SHORT_REGIONS))


@lru_cache(maxsize=_CACHED)
def _emergency_at(regions: tuple[str, ...]) -> re.Pattern[str]:
    patterns = {_pattern(table.emergency) for table in _short_tables(regions)}
    return _any_of([*_BEST_KNOWN_EMERGENCY, *sorted(patterns)])
