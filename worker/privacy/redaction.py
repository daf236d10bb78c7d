"""Finds personal data in a transcript's text.

Numbers are found by their check digits, written or spoken ("four two four two …"). What has no
check digit (a date, an e-mail address) is found by its form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final

import phonenumbers

from core.recordings.config import Kind
from worker.privacy import checks
from worker.privacy.digits import Run, ends_in_digits, runs


@dataclass(frozen=True, slots=True)
class Found:
    """``text[start:end]`` is data of this kind."""

    kind: Kind
    start: int
    end: int


_EMAIL = re.compile(
    # From a word's beginning, at most RFC 5321's 64 characters: a long text is searched in time.
    r"(?<![\w.+%-])[\w.+%-]{1,64}(?:\s+(?:dot|punkt|point|punto|ponto)\s+[\w+%-]{1,64}){0,4}"
    r"(?:@|\s*\(at\)\s*|\s+at\s+)"
    r"[\w-]{1,63}(?:(?:\.|\s+(?:dot|punkt|point|punto|ponto)\s+)[\w-]{1,63}){0,6}"
    r"(?:\.|\s+(?:dot|punkt|point|punto|ponto)\s+)[a-z]{2,24}\b",
    re.I,
)
_IBAN = re.compile(r"\b[A-Z]{2}[ -]?\d{2}(?:[ -]?[A-Z0-9]){11,30}\b", re.I)
_SHORTEST_IBAN = 15
_LETTERED: Final[tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...]] = (
    (re.compile(r"\b[XYZ\d](?:[ .-]?\d){7}[ .-]?[A-Z]\b", re.I), checks.es_dni),
    (re.compile(r"\b[A-Z]{2}(?:[ ]?\d{2}){3}[ ]?[A-D]\b", re.I), checks.gb_nino),
    (re.compile(r"\b[A-Z]{5}[ ]?\d{4}[ ]?[A-Z]\b", re.I), checks.in_pan),
    (
        re.compile(r"\b[A-Z]{3}[ ]?[A-Z]{3}[ ]?\d{2}[A-EHLMPRST]\d{2}[ ]?[A-Z]\d{3}[A-Z]\b", re.I),
        checks.it_fiscal_code,
    ),
)
_NUMBERED = (
    (9, checks.us_ssn),
    (9, checks.nl_bsn),
    (11, checks.de_tax_id),
    (12, checks.in_aadhaar),
    (15, checks.fr_nir),
)
_CARD_LENGTHS = range(19, 12, -1)
_SHORTEST_PHONE = 7

_MONTHS: Final = {
    name: number
    for names in (
        "january february march april may june july august september october november december",
        "januar februar märz april mai juni juli august september oktober november dezember",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre "
        "dicembre",
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
        "januari februari maart april mei juni juli augustus september oktober november december",
    )
    for number, name in enumerate(names.split(), 1)
}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_YEAR = r"(?P<year>(?:19|20)\d\d)"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th|er|\.|º)?"
_DATES = tuple(
    re.compile(form, re.I)
    for form in (
        rf"\b{_YEAR}[-/.](?P<month>\d{{1,2}})[-/.](?P<day>\d{{1,2}})\b",
        rf"\b(?P<day>\d{{1,2}})[-/.] ?(?P<month>\d{{1,2}})[-/.] ?{_YEAR}\b",
        rf"\b{_DAY}(?:\s+(?:of|de|do|di))?\s+(?P<name>{_MONTH})(?:\s+(?:de|do|di))?,?\s+{_YEAR}\b",
        rf"\b(?P<name>{_MONTH})\s+(?:the\s+)?{_DAY},?\s+{_YEAR}\b",
    )
)


class Finder:
    """Finds the given kinds of data. ``language``: BCP 47. ``country``: ISO 3166-1 alpha-2, whose
    national telephone numbers are found; international ones always are."""

    def __init__(
        self,
        kinds: Iterable[Kind],
        *,
        language: str = "en",
        country: str | None = None,
        today: Callable[[], date] = date.today,
    ) -> None:
        self._language = language
        self._country = country
        self._today = today
        by_kind: dict[Kind, Callable[[str], Iterator[tuple[int, int]]]] = {
            "email": _emails,
            "iban": _ibans,
            "card": self._cards,
            "national_id": self._ids,
            "birth_date": self._dates,
            "phone": self._phones,
        }
        wanted = frozenset(kinds)
        # In this order: of overlapping finds the earlier kind counts.
        self._searches = [(kind, search) for kind, search in by_kind.items() if kind in wanted]

    @property
    def finds_numbers(self) -> bool:
        return any(kind != "email" for kind, _ in self._searches)

    def goes_on(self, text: str) -> bool:
        """Return True if ``text`` may end in the middle of a number of the given kinds."""
        return self.finds_numbers and ends_in_digits(text, self._language)

    def find(self, text: str) -> list[Found]:
        """Return what was found, in order and without overlaps."""
        found: list[Found] = []
        for kind, search in self._searches:
            for start, end in search(text):
                if all(end <= other.start or other.end <= start for other in found):
                    found.append(Found(kind, start, end))
        return sorted(found, key=lambda each: each.start)

    def _cards(self, text: str) -> Iterator[tuple[int, int]]:
        for run in runs(text, self._language):
            yield from _within(run, _CARD_LENGTHS, checks.card)

    def _ids(self, text: str) -> Iterator[tuple[int, int]]:
        for pattern, check in _LETTERED:
            yield from _compact(pattern, text, check)
        for run in runs(text, self._language):
            for length, check in _NUMBERED:
                # Only a whole number: nine digits of a longer one are no proof of anything.
                if len(run.digits) == length and check(run.digits):
                    yield run.span(0, length)
                    break

    def _dates(self, text: str) -> Iterator[tuple[int, int]]:
        today = self._today()
        for pattern in _DATES:
            for match in pattern.finditer(text):
                parts = match.groupdict()
                year, day = int(parts["year"]), int(parts["day"])
                name = parts.get("name")
                month = _MONTHS[name.lower()] if name else int(parts["month"])
                if checks.date_of_birth(year, month, day, today) or (
                    not name and checks.date_of_birth(year, day, month, today)
                ):
                    yield match.span()

    def _phones(self, text: str) -> Iterator[tuple[int, int]]:
        for match in phonenumbers.PhoneNumberMatcher(text, self._country):
            yield match.start, match.end
        for run in runs(text, self._language):
            if len(run.digits) >= _SHORTEST_PHONE and self._dials(run, text):
                yield run.span(0, len(run.digits))

    def _dials(self, run: Run, text: str) -> bool:
        start, _ = run.at[0]
        international = re.search(r"(?:\+|\bplus)\s*$", text[:start], re.I) is not None
        digits = f"+{run.digits}" if international else run.digits
        try:
            number = phonenumbers.parse(digits, self._country)
        except phonenumbers.NumberParseException:
            return False
        return phonenumbers.is_valid_number(number)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        # Words may follow the number without punctuation: take the longest part that checks.
        for end in range(match.end(), match.start() + _SHORTEST_IBAN - 1, -1):
            if checks.iban(_plain(text[match.start() : end])) and text[end - 1].isalnum():
                yield match.start(), end
                break


def _compact(
    pattern: re.Pattern[str], text: str, check: Callable[[str], bool]
) -> Iterator[tuple[int, int]]:
    return (match.span() for match in pattern.finditer(text) if check(_plain(match[0])))


def _plain(text: str) -> str:
    return re.sub(r"[ .-]", "", text).upper()


def _within(
    run: Run, lengths: Iterable[int], check: Callable[[str], bool]
) -> Iterator[tuple[int, int]]:
    """Yield the parts of the run that check, the longest first: a number may follow another."""
    start = 0
    for begin in sorted(run.bounds):
        if begin < start:
            continue
        start = begin
        end = next(
            (
                start + length
                for length in lengths
                if start + length in run.bounds and check(run.digits[start : start + length])
            ),
            None,
        )
        if end is not None:
            yield run.span(start, end)
            start = end
