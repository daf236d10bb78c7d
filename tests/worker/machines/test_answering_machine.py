"""Machines and people, told apart by their first words: announcements, menus, answers."""

from __future__ import annotations

import pytest

from worker.machines.answering_machine import OPEN_FOR_S, FirstWords, Machine, by_words, words

pytestmark = pytest.mark.unit

VOICEMAIL = [
    # en
    "Hi, this is Sam. Please leave a message after the tone.",
    "You've reached the voicemail of John Smith.",
    "Your call has been forwarded to an automatic voice message system.",
    "The person you are trying to reach is not available. At the tone, please record your message.",
    "Hi, you've reached Anna, I can't come to the phone right now.",
    "We are unable to take your call. We'll get back to you as soon as we can.",
    "Sorry I missed your call. Leave me a message!",
    "Please leave a message after the beep, or press 1 for more options.",
    "You have reached the voicemail of Kim. Press one to page this person.",
    "The mailbox is full and cannot accept any messages at this time. Goodbye.",
    # de
    "Guten Tag, Sie sind verbunden mit der Mailbox von Anna Schmidt.",
    "Bitte hinterlassen Sie eine Nachricht nach dem Signalton.",
    "Der gewünschte Gesprächspartner ist zurzeit nicht erreichbar.",
    "Hier ist Jan. Leider kann ich Ihren Anruf gerade nicht entgegennehmen, ich rufe Sie zurück.",
    # es
    "Ha llamado a Ana. Deje su mensaje después del tono.",
    "El buzón de voz del número marcado. Grabe su mensaje.",
    "La persona a la que llama no está disponible en este momento.",
    "Hola, ahora no puedo atender su llamada, le devolveré la llamada lo antes posible.",
    # fr
    "Bonjour, vous êtes bien sur la messagerie de Marie.",
    "Laissez-moi un message après le signal sonore.",
    "Votre correspondant n'est pas disponible pour le moment.",
    "Je ne peux pas vous répondre, je vous rappellerai dès que possible.",
    # it
    "Risponde la segreteria telefonica di Paolo.",
    "Lasciate un messaggio dopo il segnale acustico.",
    "Il cliente da lei chiamato non è al momento raggiungibile.",
    "Ciao, non posso rispondere, ti richiamerò presto.",
    # nl
    "Dit is de voicemail van Jan de Vries.",
    "Spreek een bericht in na de piep.",
    "Op dit moment kan ik de telefoon niet opnemen, ik bel u zo snel mogelijk terug.",
    "De persoon die u belt is momenteel niet bereikbaar.",
    # pt
    "Sua chamada está sendo encaminhada para a caixa postal.",
    "Deixe o seu recado após o sinal.",
    "Não posso atender agora, retornarei a ligação.",
    "O número para o qual ligou não está disponível.",
]
MENUS = [
    "Thank you for calling Acme. For sales, press 1. For support, press 2.",
    "To leave a message, press two.",
    "If you know your party's extension, dial it now.",
    "Für den Vertrieb drücken Sie bitte die 1.",
    "Para ventas, pulse uno. Para soporte, marque el 2.",
    "Pour le service commercial, tapez 1. Appuyez sur la touche étoile.",
    "Per informazioni prema il tasto 2.",
    "Voor verkoop, toets 1. Druk op een 2.",
    "Para vendas, digite 1.",
]
PEOPLE = [
    # en
    "Hello?",
    "Hello, this is Lisa.",
    "Yes?",
    "Good morning, Smith and Partners, Jane speaking, how can I help you?",
    "He is not available right now, would you like to leave a message?",
    "She's away from her desk. Can I take a message?",
    "Sorry, he can't come to the phone. Who's calling?",
    "You've reached the front desk.",
    "He's in a meeting, could you leave me your name and number?",
    "Can you leave a message with me?",
    "I thought this would go to voicemail.",
    "Hang on, I'm just leaving the house.",
    "Press the doorbell when you get here.",
    # screening services: they ask who calls, which the agent can answer
    "Hi, if you record your name and reason for calling, I'll see if this person is available.",
    "The person you're calling is using a screening service. Say your name, and why you call.",
    # de
    "Ja, hallo?",
    "Schmidt, guten Tag.",
    "Der ist gerade nicht da, möchten Sie eine Nachricht hinterlassen?",
    "Frau Weber ist nicht erreichbar, kann ich Ihnen helfen?",
    "Wer spricht da?",
    # es
    "¿Dígame?",
    "Hola, ¿quién es?",
    "No está disponible ahora, ¿quiere dejar un recado?",
    "Buenos días, ¿en qué puedo ayudarle?",
    # fr
    "Allô ?",
    "Allô oui, bonjour.",
    "Il est absent, vous voulez laisser un message ?",
    "C'est de la part de qui ?",
    # it
    "Pronto?",
    "Pronto, chi parla?",
    "Non è in ufficio, vuole lasciare un messaggio?",
    # nl
    "Met Jan.",
    "Hallo, met wie spreek ik?",
    "Hij is niet aanwezig, wilt u een bericht achterlaten?",
    "Kan ik u helpen?",
    # pt
    "Alô?",
    "Estou sim?",
    "Ele não está disponível, quer deixar um recado?",
    "Quem fala?",
]


@pytest.mark.parametrize("text", VOICEMAIL)
def test_announcements_of_message_boxes(text: str) -> None:
    found = by_words(words(text))
    assert found is not None
    assert found.kind == "voicemail"


@pytest.mark.parametrize("text", MENUS)
def test_telephone_menus(text: str) -> None:
    found = by_words(words(text))
    assert found is not None
    assert found.kind == "ivr"


@pytest.mark.parametrize("text", PEOPLE)
def test_people(text: str) -> None:
    assert by_words(words(text)) is None
    # Nor is an interim text of a person's words taken for a machine.
    said = text.split()
    assert all(by_words(words(" ".join(said[:count]))) is None for count in range(len(said)))


def test_words_are_compared_without_accents_and_signs() -> None:
    assert words("  Après le BIP — s'il vous plaît! ") == "apres le bip s il vous plait"
    assert words("Straße, 1") == "strasse 1"
    assert words("…") == ""


class TestFirstWords:
    def test_an_interim_text_is_enough_and_is_replaced(self) -> None:
        first = FirstWords(answered_at=100.0)
        first.speech(True, 100.2)
        assert first.heard("please leave", 101.0, final=False) is None
        found = first.heard("Please leave a message", 101.5, final=False)
        assert found == Machine("voicemail", "please leave a message")
        assert not first.expects_tone
        first.heard("Please leave a message after the tone.", 102.5, final=True)
        assert first.said == "please leave a message after the tone"
        assert first.expects_tone

    def test_words_of_several_utterances_go_together(self) -> None:
        first = FirstWords(0.0)
        first.speech(True, 0.1)
        assert first.heard("You have reached Bob.", 1.5, final=True) is None
        first.speech(False, 1.5)
        first.speech(True, 2.5)
        assert first.heard("I am not available.", 3.5, final=True) is not None

    def test_hints_count_in_the_opening_only(self) -> None:
        first = FirstWords(0.0)
        first.speech(True, 0.5)
        assert first.heard("You've reached Bob.", 1.0, final=True) is None
        first.speech(False, 1.0)
        first.speech(True, 3.0)  # the far end listened to the agent in between
        assert first.heard("I am not available on Sunday.", 4.0, final=True) is None
        assert first.heard("Please leave a message with my wife.", 4.5, final=True) is None
        # Words that only a machine says still count.
        assert first.heard("Leave it after the beep.", 5.0, final=True) is not None

    def test_a_long_monologue_is_a_machine(self) -> None:
        text = " ".join(["word"] * 20)
        first = FirstWords(0.0)
        first.speech(True, 1.0)
        assert first.heard(text, 8.9, final=False) is None
        found = first.heard(text, 9.0, final=False)
        assert found == Machine("voicemail", "talked for 8.0 s")

    def test_noise_and_conversations_are_none(self) -> None:
        noise = FirstWords(0.0)
        noise.speech(True, 0.0)
        assert noise.heard("yes", 20.0, final=True) is None
        talk = FirstWords(0.0)
        talk.speech(True, 0.0)
        talk.speech(False, 1.0)
        talk.speech(True, 4.0)
        assert talk.heard(" ".join(["word"] * 40), 19.0, final=True) is None

    def test_a_short_utterance_is_measured_to_its_end(self) -> None:
        first = FirstWords(0.0)
        first.speech(True, 0.0)
        first.speech(False, 6.0)
        assert first.heard(" ".join(["word"] * 30), 9.0, final=True) is None

    def test_a_full_box_takes_no_message(self) -> None:
        first = FirstWords(0.0)
        assert first.heard("The mailbox you called is full.", 2.0, final=True) is not None
        assert first.takes_no_message

    def test_the_question_is_closed_some_time(self) -> None:
        first = FirstWords(50.0)
        assert first.open(50.0 + OPEN_FOR_S - 0.1)
        assert not first.open(50.0 + OPEN_FOR_S)
