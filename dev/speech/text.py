"""Turns written text into the words that a voice says, without digits or signs."""

from __future__ import annotations

import re

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_IRREGULAR_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_SIGNS = {"%": "percent", "&": "and", "+": "plus", "=": "equals", "@": "at", "#": "number"}
_CURRENCIES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny")}
_APOSTROPHES = str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'", "`": "'"})

# Longer numbers (telephone, order and card numbers) are read digit by digit.
_LONGEST_CARDINAL = 6

_MONEY = re.compile(r"([$€£])(\d[\d,]*)(?:\.(\d\d))?")
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)\b")
_GROUPED = re.compile(r"(\d{1,3}(?:,\d{3})+)")
_DECIMAL = re.compile(r"(\d+)\.(\d+)")
_DIGITS = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def spoken_words(token: str) -> list[str]:
    """Return the spoken words of one blank-separated token, in lower case; none for a lone sign.

    >>> spoken_words("$3.50,"), spoken_words("12:05")
    (['three', 'dollars', 'fifty', 'cents'], ['twelve', 'oh', 'five'])
    """
    text = token.translate(_APOSTROPHES).lower()
    text = _MONEY.sub(_money, text)
    text = _CLOCK.sub(_clock, text)
    text = _ORDINAL.sub(lambda match: f" {_ordinal(int(match[1]))} ", text)
    text = _GROUPED.sub(lambda match: f" {cardinal(int(match[1].replace(',', '')))} ", text)
    text = _DECIMAL.sub(lambda match: f" {_digits(match[1])} point {_each_digit(match[2])} ", text)
    text = _DIGITS.sub(lambda match: f" {_digits(match[0])} ", text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, f" {word} ")
    return _WORD.findall(text)


def normalize(text: str) -> str:
    """Return lower-case words without punctuation or digits, to compare texts by their sound."""
    return " ".join(word for token in text.split() for word in spoken_words(token))


def cardinal(number: int) -> str:
    """Spell 0 ≤ number < 10¹² in American English, without "and" or hyphens."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")
    size, name = next(scale for scale in _SCALES if number >= scale[0])
    count, rest = divmod(number, size)
    return f"{cardinal(count)} {name}" + (f" {cardinal(rest)}" if rest else "")


def _ordinal(number: int) -> str:
    *front, last = cardinal(number).split()
    if last in _IRREGULAR_ORDINALS:
        last = _IRREGULAR_ORDINALS[last]
    else:
        last = last.removesuffix("y") + "ieth" if last.endswith("y") else last + "th"
    return " ".join([*front, last])


def _each_digit(digits: str) -> str:
    return " ".join(_ONES[int(digit)] for digit in digits)


def _digits(digits: str) -> str:
    as_code = len(digits) > _LONGEST_CARDINAL or (len(digits) > 1 and digits[0] == "0")
    return _each_digit(digits) if as_code else cardinal(int(digits))


def _money(match: re.Match[str]) -> str:
    whole, part = _CURRENCIES[match[1]]
    amount = int(match[2].replace(",", ""))
    words = [cardinal(amount), whole if amount == 1 else whole + "s"]
    if match[3] and int(match[3]):
        cents = int(match[3])
        words += [cardinal(cents), part if cents == 1 else _plural(part)]
    return f" {' '.join(words)} "


def _plural(part: str) -> str:
    return "pence" if part == "penny" else part + "s"


def _clock(match: re.Match[str]) -> str:
    hour, minute = int(match[1]), int(match[2])
    if not minute:
        return f" {cardinal(hour)} o'clock "
    return f" {cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)} "
