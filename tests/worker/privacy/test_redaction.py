"""What is found in a transcript's text, and what is left alone."""

from __future__ import annotations

from datetime import date

import pytest

from core.models import Turn, Word
from core.recordings.config import Kind
from worker.privacy.redaction import Finder
from worker.privacy.redactor import Redactor
from worker.privacy.silencer import LAG_MS, MARGIN_MS, Silencer

pytestmark = pytest.mark.unit

KINDS: tuple[Kind, ...] = ("card", "iban", "email", "phone", "birth_date", "national_id")
TODAY = date(2026, 11, 30)


def finder(*kinds: Kind, language: str = "en", country: str | None = "US") -> Finder:
    return Finder(kinds or KINDS, language=language, country=country, today=lambda: TODAY)


def cut(text: str, *kinds: Kind, language: str = "en", country: str | None = "US") -> str:
    return Redactor(finder(*kinds, language=language, country=country)).text(text)


@pytest.mark.parametrize(
    "number",
    [
        "4242424242424242",
        "4242 4242 4242 4242",
        "4242-4242-4242-4242",
        "4242, 4242, 4242, 4242",
        "378282246310005",
        "5555 5555 5555 4444",
        "four two four two four two four two four two four two four two four two",
        "Four two four two, four two four two, uh, four two four two, four two four two",
        "four two four two double four 2 4 2",  # not sixteen digits: see below
    ],
)
def test_cards(number: str) -> None:
    redacted = cut(f"My card is {number}, valid until 12 27.", "card")
    if "double" in number:
        assert redacted == f"My card is {number}, valid until 12 27."
    else:
        assert redacted == "My card is [card], valid until 12 27."


def test_repeated_digits_are_counted() -> None:
    said = "triple five five, triple five five, triple five five, triple four four"
    assert cut(said, "card") == "[card]"


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("de-DE", "vier zwei vier zwo " * 4),
        ("fr", "quatre deux quatre deux " * 4),
        ("es-419", "cuatro dos cuatro dos " * 4),
        ("it", "quattro due quattro due " * 4),
        ("pt-BR", "quatro dois quatro dois " * 4),
        ("nl", "vier twee vier twee " * 4),
    ],
)
def test_digits_are_spoken_in_the_agents_language(language: str, said: str) -> None:
    assert cut(said.strip(), "card", language=language) == "[card]"
    assert cut(said.strip(), "card", language="ja") == said.strip()


@pytest.mark.parametrize(
    "text",
    [
        "4242 4242 4242 4243 is a wrong number",
        "Order 1234567890123456 was sent",
        "one moment, two of four",
        "Call 4242 or 4243, then 12 27",
        "",
    ],
)
def test_what_has_a_wrong_check_digit_is_no_card(text: str) -> None:
    assert cut(text, "card") == text


@pytest.mark.parametrize(
    ("kind", "text", "redacted"),
    [
        ("iban", "IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [iban] please"),
        ("iban", "it is GB82WEST12345698765432.", "it is [iban]."),
        ("iban", "it is DE88370400440532013000.", None),
        ("email", "write to jane.doe+x@mail.example.com, ok", "write to [email], ok"),
        ("email", "jane dot doe at example dot com", "[email]"),
        ("email", "meet me at noon", None),
        ("phone", "call 123-456-7890 today", None),  # there is no area 123
        ("phone", "call (510) 644-1234 today", "call [phone] today"),
        ("phone", "call +49 30 901820 today", "call [phone] today"),
        ("phone", "plus four nine three zero nine zero one eight two zero", "plus [phone]"),
        ("phone", "the year 2024 to 2026", None),
        ("birth_date", "born March 3rd, 1985 in Rome", "born [birth_date] in Rome"),
        ("birth_date", "born 31.12.1999 in Rome", "born [birth_date] in Rome"),
        ("birth_date", "born 12/31/1999", "born [birth_date]"),
        ("birth_date", "am 3. März 1985", "am [birth_date]"),
        ("birth_date", "el 3 de marzo de 1985", "el [birth_date]"),
        ("birth_date", "on 1999-02-30", None),
        ("birth_date", "delivery on December 24th, 2027", None),
        ("national_id", "social 123-45-6789 ok", "social [national_id] ok"),
        ("national_id", "one two three, four five, six seven eight nine", "[national_id]"),
        ("national_id", "social 666-45-6789 ok", None),
        ("national_id", "ID 47036892816", "ID [national_id]"),
        ("national_id", "ID 47036892817", None),
        ("national_id", "BSN 111222333", "BSN [national_id]"),
        ("national_id", "Aadhaar 2341 2341 2346", "Aadhaar [national_id]"),
        ("national_id", "Aadhaar 2341 2341 2347", None),
        ("national_id", "NIR 2 55 08 14 168 025 38", "NIR [national_id]"),
        ("national_id", "NIR 2 55 08 14 168 025 39", None),
        ("national_id", "DNI 12345678Z", "DNI [national_id]"),
        ("national_id", "DNI 12345678A", None),
        ("national_id", "NIE X-1234567-L", "NIE [national_id]"),
        ("national_id", "codice RSSMRA85T10A562S", "codice [national_id]"),
        ("national_id", "codice RSSMRA85T10A562T", None),
        ("national_id", "NI number AB 12 34 56 C", "NI number [national_id]"),
        ("national_id", "PAN ABCPE1234F", "PAN [national_id]"),
    ],
)
def test_the_other_kinds(kind: Kind, text: str, redacted: str | None) -> None:
    assert cut(text, kind) == (text if redacted is None else redacted)


def test_only_the_wanted_kinds_are_found() -> None:
    text = "4242424242424242 and jane@example.com"
    assert cut(text, "email") == "4242424242424242 and [email]"
    assert cut(text, "card") == "[card] and jane@example.com"
    assert Redactor(Finder([])).text(text) == text


def test_a_national_phone_number_needs_its_country() -> None:
    assert cut("call 030 901820", "phone", country="DE") == "call [phone]"
    assert cut("call 030 901820", "phone", country=None) == "call 030 901820"


@pytest.mark.parametrize("text", ["9" * 5000, "a@" * 2000, "4 " * 5000, "ab" * 5000, "1/1/" * 2000])
def test_long_hostile_text_is_searched_in_time(text: str) -> None:
    assert isinstance(cut(text), str)


class TestTurns:
    def silencer(self) -> Silencer:
        return Silencer(lambda: 10_000)

    def turn(self, text: str, *, times: bool = True) -> Turn:
        words = [
            Word(text=word, start_ms=1000 + 100 * number, end_ms=1080 + 100 * number)
            for number, word in enumerate(text.split())
        ]
        return Turn(
            id="turn_1",
            transcript=text,
            start_ms=1000,
            end_ms=3000,
            words=words if times else [],
        )

    def test_words_are_replaced_and_their_audio_is_silenced(self) -> None:
        silencer = self.silencer()
        redactor = Redactor(finder(), silencer)
        (turn,) = redactor.turn(self.turn("it is 4242 4242 4242 4242, thanks"))
        assert turn.transcript == "it is [card], thanks"
        assert [(word.text, word.start_ms, word.end_ms) for word in turn.words] == [
            ("it", 1000, 1080),
            ("is", 1100, 1180),
            ("[card]", 1200, 1580),
            ("thanks", 1600, 1680),
        ]
        assert list(silencer.spans()) == [(1200 - MARGIN_MS, 1580 + MARGIN_MS)]
        assert redactor.counts == {"card": 1}

    def test_without_word_times_the_whole_turn_is_silenced(self) -> None:
        silencer = self.silencer()
        redactor = Redactor(finder(), silencer)
        (turn,) = redactor.turn(self.turn("4242424242424242, ok", times=False))
        assert turn.transcript == "[card], ok"
        assert list(silencer.spans()) == [(1000 - MARGIN_MS, 3000 + MARGIN_MS)]

    def test_the_agents_answer_is_redacted_too(self) -> None:
        turn = Turn(id="turn_1", response="So 4242424242424242?", response_start_ms=5)
        assert [each.response for each in Redactor(finder()).turn(turn)] == ["So [card]?"]

    def test_a_turn_that_is_posted_again_is_counted_once(self) -> None:
        redactor = Redactor(finder())
        turn = self.turn("4242424242424242 and jane@example.com")
        redactor.turn(turn)
        redactor.turn(turn.model_copy(update={"response": "Thanks."}))
        redactor.turn(turn.model_copy(update={"id": "turn_2", "transcript": "4242424242424242"}))
        redactor.rest()
        assert redactor.counts == {"card": 2, "email": 1}

    def test_a_turn_without_data_stays_as_it_is(self) -> None:
        turn = self.turn("what are your opening hours")
        (same,) = Redactor(finder()).turn(turn)
        assert same is turn


class TestOverTurns:
    """A number in pieces; the agent's answers are between them."""

    def parts(self, *texts: str) -> list[Turn]:
        return [
            Turn(
                id=f"turn_{number}",
                transcript=text,
                start_ms=1000 * number,
                end_ms=1000 * number + 500,
                words=[Word(text=text, start_ms=1000 * number, end_ms=1000 * number + 500)],
            )
            for number, text in enumerate(texts, 1)
        ]

    def test_it_is_found_in_all_turns_and_counted_once(self) -> None:
        silencer = Silencer(lambda: 60_000)
        redactor = Redactor(finder("card"), silencer)
        turns = self.parts("it's four one one one", "one one one one, uh", "1111 1111", "thanks")
        told = []
        for number, turn in enumerate(turns):
            told += redactor.turn(turn)
            told += redactor.turn(turn.model_copy(update={"response": "Uh-huh."}))
            assert bool(told) is (number == 3)
            assert redactor.holds is (number < 3)
        assert [turn.transcript for turn in told[:4]] == [
            "it's [card]",
            "[card]",
            "[card]",
            "thanks",
        ]
        assert redactor.counts == {"card": 1}
        assert list(silencer.spans()) == [
            (start - 100, start + 600) for start in (1000, 2000, 3000)
        ]

    def test_what_was_found_together_stays_found_in_a_turn_that_comes_again(self) -> None:
        redactor = Redactor(finder("card"))
        first, second = self.parts("4111 1111 1111", "1111")
        redactor.turn(first)
        redactor.turn(second)
        assert [turn.transcript for turn in redactor.rest()] == ["[card]", "[card]"]
        redactor.turn(second.model_copy(update={"response": "Thanks."}))
        (again,) = redactor.rest()
        assert (again.transcript, again.response) == ("[card]", "Thanks.")
        assert redactor.counts == {"card": 1}

    def test_what_the_agent_says_unasked_does_not_end_a_number(self) -> None:
        redactor = Redactor(finder("card"))
        first, second = self.parts("4111 1111 1111", "1111.")
        turns = [first, Turn(id="turn_x", response="Are you there?"), second]
        assert [redactor.turn(turn) for turn in turns] == [[], [], []]
        assert [turn.transcript for turn in redactor.rest()] == ["[card]", "", "[card]."]

    def test_other_words_end_it(self) -> None:
        redactor = Redactor(finder("card"))
        turns = self.parts("4111 1111 1111", "no wait", "1111")
        told = [turn.transcript for each in turns for turn in redactor.turn(each)]
        assert told == ["4111 1111 1111", "no wait"]

    def test_only_numbers_that_are_looked_for_are_waited_for(self) -> None:
        (turn,) = self.parts("4111 1111 1111")
        assert Redactor(finder("email")).turn(turn) == [turn]

    def test_no_more_than_so_many_turns_are_held_back(self) -> None:
        redactor = Redactor(finder("card"))
        told = [redactor.turn(turn) for turn in self.parts(*["1"] * 25)]
        assert [len(each) for each in told if each] == [20]

    def test_the_recording_waits_for_turns_that_are_held_back(self) -> None:
        silencer = Silencer(lambda: 60_000)
        redactor = Redactor(finder("card"), silencer)
        first, second = self.parts("4111", "1111")
        redactor.turn(first)
        redactor.turn(second)
        assert silencer.known_ms() == 1000 - MARGIN_MS
        redactor.rest()
        assert silencer.known_ms() == 60_000 - LAG_MS
        typed = Turn(id="turn_3", transcript="4111", response="4111?", response_start_ms=7000)
        redactor.turn(typed)
        assert silencer.known_ms() == 7000 - MARGIN_MS
