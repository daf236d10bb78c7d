"""The check digits of numbers that identify a card, an account or a person."""

from __future__ import annotations

import re
from datetime import date

_VERHOEFF_D = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 2, 3, 4, 0, 6, 7, 8, 9, 5),
    (2, 3, 4, 0, 1, 7, 8, 9, 5, 6),
    (3, 4, 0, 1, 2, 8, 9, 5, 6, 7),
    (4, 0, 1, 2, 3, 9, 5, 6, 7, 8),
    (5, 9, 8, 7, 6, 0, 4, 3, 2, 1),
    (6, 5, 9, 8, 7, 1, 0, 4, 3, 2),
    (7, 6, 5, 9, 8, 2, 1, 0, 4, 3),
    (8, 7, 6, 5, 9, 3, 2, 1, 0, 4),
    (9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
)
_VERHOEFF_P = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 5, 7, 6, 2, 8, 3, 0, 9, 4),
    (5, 8, 0, 3, 7, 9, 6, 1, 4, 2),
    (8, 9, 1, 6, 0, 4, 3, 5, 2, 7),
    (9, 4, 5, 3, 1, 2, 6, 8, 7, 0),
    (4, 2, 8, 6, 5, 7, 3, 9, 0, 1),
    (2, 7, 9, 3, 8, 0, 6, 4, 1, 5),
    (7, 0, 4, 6, 9, 1, 3, 2, 5, 8),
)
_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"
# Of the characters in odd places: 0 to 9 as A to J.
_CF_ODD = (
    *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
)


def card(digits: str) -> bool:
    """ISO/IEC 7812: 13 to 19 digits, a known industry's first digit, Luhn's check digit."""
    if not 13 <= len(digits) <= 19 or digits[0] not in "23456":
        return False
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban(text: str) -> bool:
    """ISO 13616: letters and digits without blanks, 15 to 34, and 1 modulo 97 (ISO 7064)."""
    if not re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}", text):
        return False
    moved = text[4:] + text[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def us_ssn(digits: str) -> bool:
    """The US Social Security number: areas 000, 666 and 900 to 999 were never assigned."""
    if len(digits) != 9:
        return False
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def de_tax_id(digits: str) -> bool:
    """The German Steuer-ID (§ 139b AO): 11 digits, ISO 7064 mod 11,10.

    Among the first ten, one digit occurs two or three times.
    """
    if len(digits) != 11 or digits[0] == "0":
        return False
    if max(digits[:10].count(digit) for digit in set(digits[:10])) not in {2, 3}:
        return False
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def fr_nir(digits: str) -> bool:
    """The French NIR: 13 digits and 97 minus their remainder modulo 97."""
    if len(digits) != 15 or digits[0] not in "1234":
        return False
    return 97 - int(digits[:13]) % 97 == int(digits[13:])


def nl_bsn(digits: str) -> bool:
    """The Dutch BSN: 9 digits with the "eleven test"."""
    if len(digits) != 9:
        return False
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    total = sum(weight * int(digit) for weight, digit in zip(weights, digits, strict=True))
    return total % 11 == 0 and int(digits) > 0


def in_aadhaar(digits: str) -> bool:
    """The Indian Aadhaar number: 12 digits, not beginning with 0 or 1, Verhoeff's check digit."""
    if len(digits) != 12 or digits[0] in "01":
        return False
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = _VERHOEFF_D[check][_VERHOEFF_P[place % 8][int(digit)]]
    return check == 0


def es_dni(text: str) -> bool:
    """The Spanish DNI or NIE: the letter is the number modulo 23."""
    if not re.fullmatch(r"[XYZ\d]\d{7}[A-Z]", text):
        return False
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return _DNI[int(number) % 23] == text[-1]


def it_fiscal_code(text: str) -> bool:
    """The Italian codice fiscale (D.M. 23 December 1976): its 16th character is a check letter."""
    if not re.fullmatch(r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", text):
        return False
    total = 0
    for place, character in enumerate(text[:15]):
        value = int(character) if character.isdecimal() else ord(character) - ord("A")
        total += value if place % 2 else _CF_ODD[value]
    return chr(ord("A") + total % 26) == text[15]


def gb_nino(text: str) -> bool:
    """The British National Insurance number: the prefixes that HMRC allocates (NIM39110)."""
    if not re.fullmatch(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]", text):
        return False
    return text[:2] not in {"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"}


def in_pan(text: str) -> bool:
    """The Indian PAN of a person: the fourth letter is P."""
    return re.fullmatch(r"[A-Z]{3}P[A-Z]\d{4}[A-Z]", text) is not None


def date_of_birth(year: int, month: int, day: int, today: date) -> bool:
    """A day that exists, on which somebody alive today can be born."""
    try:
        born = date(year, month, day)
    except ValueError:
        return False
    return born <= today and today.year - year <= 120
