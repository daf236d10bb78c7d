"""Places whose law asks for the consent of everybody on a call before it is recorded.

A number's place is its region by the numbering plan (phonenumbers): the country, or the state of a
US number. A place that is not known counts as one that asks for it. This table helps operators and
is no legal advice; each entry names the rule that it follows.

US states. All parties, for calls:
    California       Penal Code §§ 632, 632.7
    Connecticut      Gen. Stat. § 52-570d
    Delaware         11 Del. C. § 1335(a)(4); § 2402(c)(4) asks for one party only
    Florida          Stat. § 934.03(2)(d)
    Illinois         720 ILCS 5/14-2
    Maryland         Cts. & Jud. Proc. § 10-402(c)(3)
    Massachusetts    G.L. c. 272 § 99
    Montana          Code § 45-8-213(1)(c)
    Nevada           NRS 200.620, by Lane v. Allstate, 114 Nev. 1176 (1998)
    New Hampshire    RSA 570-A:2
    Pennsylvania     18 Pa. C.S. § 5704(4)
    Washington       RCW 9.73.030
  Listed to be careful, as their statutes ask for it in some cases:
    Michigan         MCL 750.539c; participants are exempt by Sullivan v. Gray (1982)
    Oregon           ORS 165.540(1)(c), which is about conversations in person

Countries:
    AT  Austria      StGB § 120
    AU  Australia    the states' acts, e.g. NSW Surveillance Devices Act 2007 § 7
    CH  Switzerland  StGB Art. 179ter
    DE  Germany      StGB § 201
    FR  France       Code pénal art. 226-1
    GR  Greece       Penal Code art. 370A
    HR  Croatia      Kazneni zakon art. 143
    LI  Liechtenstein StGB § 120
    PT  Portugal     Código Penal art. 199
    SI  Slovenia     KZ-1 art. 137
    TR  Turkey       TCK art. 133
"""

from __future__ import annotations

from functools import lru_cache

import phonenumbers
from phonenumbers import geocoder

from core.recordings.config import Consent, ConsentMode

COUNTRIES = frozenset({"AT", "AU", "CH", "DE", "FR", "GR", "HR", "LI", "PT", "SI", "TR"})
STATES = {
    "CA": "California",
    "CT": "Connecticut",
    "DE": "Delaware",
    "FL": "Florida",
    "IL": "Illinois",
    "MA": "Massachusetts",
    "MD": "Maryland",
    "MI": "Michigan",
    "MT": "Montana",
    "NH": "New Hampshire",
    "NV": "Nevada",
    "OR": "Oregon",
    "PA": "Pennsylvania",
    "WA": "Washington State",
}
"""By postal code, the names that phonenumbers gives them."""


def consent_mode(consent: Consent, *numbers: str | None) -> ConsentMode:
    """Return the mode that holds for a call with these numbers, the far end's and ours."""
    if consent.by_jurisdiction and any(map(asks_everybody, numbers)):
        return "opt_in"
    return consent.mode


@lru_cache(maxsize=4096)
def asks_everybody(number: str | None) -> bool:
    """Return True if the law of the number's place asks for all parties' consent.

    True, too, if the place is not known: no number, no E.164 number, a toll-free number.
    """
    try:
        read = phonenumbers.parse(number or "")
    except phonenumbers.NumberParseException:
        return True
    region = phonenumbers.region_code_for_number(read)
    if region != "US":
        # 001 stands for numbers of no country, such as satellite and international toll-free ones.
        return region in (None, "001") or region in COUNTRIES
    described = geocoder.description_for_number(read, "en")  # "San Francisco, CA" or "California"
    state = described.rpartition(", ")[2]
    return not state or state in STATES or state in STATES.values()
