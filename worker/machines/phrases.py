"""Phrases of answering machines and telephone menus, and words that only people say.

The regular expressions match text normalised by ``answering_machine.words``: lower case, no
accents, no punctuation (``n'est`` is ``n est``). The wording comes from stock announcements of
mobile carriers and voicemail systems, and from typical greetings that people record instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrases:
    """One language's patterns.

    A match of ``tone`` (a beep is announced), ``closed`` (no message can be left) or ``menu``
    decides alone. A match of ``voicemail`` or of two ``hints`` decides unless ``person`` matches.
    """

    tone: str
    voicemail: str
    closed: str
    menu: str
    hints: tuple[str, ...]
    person: str


_EN = Phrases(
    tone=r"(after|at|following|hear|wait for) the (\w+ )?(tone|beep)",
    voicemail=r"please (\w+ ){0,2}leave (\w+ ){0,4}(message|name|number)"
    r"|leave (me |us )?your (\w+ )?(name|message|number)"
    r"|record (your|a) (\w+ )?message"
    r"|(reached|forwarded to|transferred to) (\w+ ){0,6}(voice ?mail|mailbox|voice messag\w+)"
    r"|answering machine of",
    closed=r"mailbox (\w+ ){0,4}full|(has not|hasn t|have not) been set up"
    r"|(cannot|can t|unable to|not) (accept|receive|accepting|record) (\w+ ){0,2}messages"
    r"|number (\w+ ){0,5}(not in service|been disconnected|not a working number)",
    menu=r"(press|dial|push) (the )?(number |key )?"
    r"([0-9]|one|two|three|four|five|six|seven|eight|nine|zero|star|pound|hash|any key)\b"
    r"|(your|the) party s extension|menu options|main menu",
    hints=(
        r"(not|isn t|aren t) (\w+ )?available|unavailable",
        r"(can t|cannot|can not|unable to|not able to) (\w+ )?"
        r"(come to the phone|take (your|the) call|answer|get to the phone)",
        r"(person|customer|subscriber|party|caller|member) (that )?you (\w+ ){0,3}"
        r"(reach|call\w*|dial\w*)",
        r"(get back to you|return your call|call you back) (as soon|when|later|shortly)",
        r"you( ve| have)? reached",
        r"(away from|missed) (my|your|the) (desk|phone|call)",
        r"(?<!to )leave (me |us |him |her )?a (\w+ )?message",
        r"voice ?mail|mailbox|answering machine",
        r"call (may|will) be (recorded|monitored)",
    ),
    person=r"would you like|do you want|(can|may|shall|could|should) i\b|(can|could|will) you\b"
    r"|who( s| is) (calling|this|speaking)",
)
_DE = Phrases(
    tone=r"nach dem (\w+ )?(ton|signal|signalton|piep|piepton|pfeifton)",
    voicemail=r"(hinterlass\w*|hinterlasst) (sie |mir |uns |bitte |gern\w* |doch ){0,4}"
    r"(eine|deine|ihre|ihren|eure) (\w+ )?(nachricht|namen)"
    r"|(mailbox|anrufbeantworter|sprachbox) (von|der|des)"
    r"|sprechen sie (\w+ ){0,3}auf (band|den anrufbeantworter)"
    r"|anruf (\w+ ){0,3}(an|auf) (die|eine) (mailbox|sprachbox)",
    closed=r"(mailbox|sprachbox|anrufbeantworter) (\w+ ){0,3}voll|nicht eingerichtet"
    r"|kein anschluss unter dieser nummer|rufnummer (\w+ ){0,2}nicht vergeben",
    menu=r"(drucken|wahlen) sie (bitte |dann )?(die |eine )?(taste |ziffer )?"
    r"([0-9]|null|eins|zwei|drei|vier|funf|sechs|sieben|acht|neun|raute|stern)\b",
    hints=(
        r"nicht (\w+ ){0,2}(erreichbar|zu erreichen|verfugbar)",
        r"anruf (\w+ ){0,3}nicht (\w+ )?(entgegennehmen|annehmen)",
        r"(angerufene|gewunschte|gewahlte)\w* (teilnehmer|gesprachspartner|person)",
        r"ruf\w* (\w+ ){0,4}zuruck",
        r"mailbox|anrufbeantworter|sprachbox",
    ),
    person=r"mochten sie|wollen sie|(soll|darf) ich|kann ich (ihnen|etwas|was|helfen)"
    r"|wer (spricht|ist) (da|dort|am)",
)
_ES = Phrases(
    tone=r"(despues (de|del|de la|de el)|tras (el|la)|al (oir|escuchar) (el|la)) "
    r"(tono|senal|bip|pitido)",
    voicemail=r"(deje|deja|dejen|dejenos|dejeme|dejame) (\w+ ){0,4}(mensaje|recado|nombre)"
    r"|grabe (su|un) mensaje"
    r"|(al|en el|el) (buzon|contestador) (de voz|de mensajes|automatico|de)\b",
    closed=r"buzon (\w+ ){0,4}lleno|numero (\w+ ){0,5}(no existe|no esta asignado)",
    menu=r"(pulse|presione|marque|oprima|teclee) (el |la )?(numero |tecla |opcion )?"
    r"([0-9]|cero|uno|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|asterisco|almohadilla|numeral)\b",
    hints=(
        r"no (esta|se encuentra|estoy|estamos) (\w+ ){0,2}disponible",
        r"no (puedo|podemos|puede) (\w+ )?(atender\w*|contestar\w*|responder\w*)",
        r"(persona|numero|cliente|usuario|abonado) (\w+ ){0,2}que (\w+ ){0,3}"
        r"(llama\w*|marc\w+|llamado)",
        r"(le|te) (devolver\w+|llamare\w*) (\w+ ){0,3}(llamada|pronto|posible|luego|antes)",
        r"buzon|contestador",
    ),
    person=r"(quiere|desea|le gustaria) (\w+ ){0,2}(dejar|que|hablar)|(?<!no )puedo"
    r"|quien (habla|llama|es)|de parte de quien",
)
_FR = Phrases(
    tone=r"apres (le |la )?(\w+ )?(bip|signal|tonalite|ton)\b",
    voicemail=r"(laissez|laisse) (\w+ ){0,4}(message|nom|coordonnees)"
    r"|enregistrez (\w+ )?message"
    r"|(sur|a) (la |ma |le |mon )?(messagerie|boite vocale|repondeur|boite de messagerie)"
    r"|(messagerie|repondeur) (vocale |telephonique )?(de|du)\b",
    closed=r"(messagerie|boite vocale) (\w+ ){0,4}pleine"
    r"|numero (\w+ ){0,5}pas (attribue|en service)",
    menu=r"(appuyez|tapez|composez) (sur )?(la |le )?(touche |chiffre )?"
    r"([0-9]|zero|un|deux|trois|quatre|cinq|six|sept|huit|neuf|etoile|diese)\b",
    hints=(
        r"pas (\w+ ){0,2}(disponible|joignable)|indisponible|injoignable|absente?\b",
        r"ne (peux|pouvons|peut) (\w+ ){0,2}pas (\w+ )?repondre|pas (vous )?repondre",
        r"(correspondant|personne|numero) que vous (\w+ )?(appel\w+|demand\w+|compos\w+)"
        r"|votre correspondant",
        r"(rappeller\w+|rappelle) (\w+ ){0,2}(des que|plus tard|bientot|rapidement)"
        r"|vous rappeller\w+",
        r"messagerie|repondeur|boite vocale",
    ),
    person=r"voulez vous|vous voulez|souhaitez vous|puis je|je peux"
    r"|qui (est a l appareil|appelle|est ce)|de la part de qui",
)
_IT = Phrases(
    tone=r"(dopo|al) (il |la |un )?(\w+ )?(segnale|bip|beep|tono)\b",
    voicemail=r"(lasciate|lascia|lasci|lasciateci|lasciami|lasciatemi|lasciare qui) "
    r"(pure |qui |mi |ci ){0,2}(un|il|il suo|il tuo|il vostro) (breve )?(messaggio|nome)"
    r"|registr(a|i|ate) (\w+ ){0,2}messaggio"
    r"|segreteria (telefonica )?(di|del|della)\b|(nella|alla|della) (casella vocale|segreteria)",
    closed=r"casella (\w+ ){0,4}piena|segreteria (\w+ ){0,4}piena|numero (\w+ ){0,4}inesistente",
    menu=r"(prema|premi|premere|digiti|digita|digitare) (il |la |l )?(tasto |numero )?"
    r"([0-9]|zero|uno|due|tre|quattro|cinque|sei|sette|otto|nove|asterisco|cancelletto)\b",
    hints=(
        r"non (e|sono|siamo) (\w+ ){0,3}(disponibil\w|raggiungibil\w|in casa|in ufficio)",
        r"non (posso|possiamo|puo) (\w+ ){0,2}risponder\w*",
        r"(cliente|utente|persona|numero) (\w+ ){0,2}(chiamat\w|desiderat\w|selezionat\w)",
        r"(la|ti|vi) (richiamer\w+|ricontatt\w+)",
        r"segreteria|casella vocale",
    ),
    person=r"(vuole|desidera|vuoi) (\w+ ){0,2}(lasciare|che|parlare)|(?<!non )posso"
    r"|chi parla|con chi parlo",
)
_NL = Phrases(
    tone=r"na (de|het) (\w+ )?(piep|pieptoon|toon|signaal|biep|bliep)",
    voicemail=r"(spreek|laat) (\w+ ){0,4}(bericht|boodschap|naam)"
    r"|(voicemail|antwoordapparaat) van|verbonden met (de|het) (voicemail|antwoordapparaat)",
    closed=r"(mailbox|voicemail) (\w+ ){0,3}vol\b|nummer (\w+ ){0,3}niet in gebruik",
    menu=r"(druk|toets) (dan )?(op )?(de )?"
    r"([0-9]|nul|een|twee|drie|vier|vijf|zes|zeven|acht|negen|hekje|sterretje)\b",
    hints=(
        r"niet (\w+ ){0,2}(bereikbaar|beschikbaar|aanwezig)",
        r"niet (\w+ )?(opnemen|aannemen|beantwoorden|te woord staan)",
        r"(persoon|abonnee|gebruiker|nummer) (die|dat) u (\w+ )?(belt|probeert|heeft|bereiken)",
        r"\bbel\w* (\w+ ){0,5}terug",
        r"voicemail|antwoordapparaat",
    ),
    person=r"wilt u|wil je|mag ik|zal ik|kan ik (u|je|een)\b|met wie (spreek|heb)",
)
_PT = Phrases(
    tone=r"(apos|depois de|depois do) (o |a )?(sinal|bip|tom|toque)",
    voicemail=r"(deixe|deixa|deixem) (\w+ ){0,4}(mensagem|recado|nome)|grave (a )?sua mensagem"
    r"|(para|na|a|da|no) (sua )?(caixa postal|caixa de mensagens|correio de voz)"
    r"|(caixa postal|correio de voz) (de|do|da)\b",
    closed=r"caixa (\w+ ){0,4}cheia|numero (\w+ ){0,5}(nao existe|nao esta atribuido)",
    menu=r"(pressione|digite|tecle|marque|prima|aperte) (a |o )?(tecla |numero |opcao )?"
    r"([0-9]|zero|um|dois|tres|quatro|cinco|seis|sete|oito|nove|asterisco|cerquilha|cardinal)\b",
    hints=(
        r"nao (\w+ ){0,3}disponivel|indisponivel",
        r"nao (posso|podemos|pode) (\w+ ){0,2}atender\w*",
        r"(pessoa|numero|cliente|assinante) (\w+ ){0,3}(ligou|chamou|discou|marcou|chamado)",
        r"(retornarei|retornaremos|retorno|ligarei|ligo) (\w+ ){0,3}(ligacao|volta|breve|possivel)",
        r"caixa postal|caixa de mensagens|correio de voz",
    ),
    person=r"(quer|deseja|gostaria de) (\w+ ){0,2}(deixar|que|falar)|(?<!nao )posso"
    r"|quem (fala|esta falando|gostaria)",
)

_ALL = (_EN, _DE, _ES, _FR, _IT, _NL, _PT)

# Each covers all languages, because a carrier's announcement may not be in the agent's language.
TONE = re.compile("|".join(rf"\b(?:{phrases.tone})" for phrases in _ALL))
CLOSED = re.compile("|".join(rf"\b(?:{phrases.closed})" for phrases in _ALL))
MENU = re.compile("|".join(rf"\b(?:{phrases.menu})" for phrases in _ALL))


class Language:
    """One language's compiled patterns that count only unless ``person`` matches."""

    def __init__(self, phrases: Phrases) -> None:
        self.voicemail = re.compile(rf"\b(?:{phrases.voicemail})")
        self.hints = tuple(re.compile(rf"\b(?:{hint})") for hint in phrases.hints)
        self.person = re.compile(rf"\b(?:{phrases.person})")


# Kept apart, because ``person`` must match in the same language: Spanish "puedo" is not Portuguese.
LANGUAGES = tuple(Language(phrases) for phrases in _ALL)
