"""20Minuten stand-in: a German sentence is simplified word for word from a fixed lexicon."""

from __future__ import annotations

from random import Random

NAME = "20Minuten"
MAX_NEW_TOKENS = 24

# (difficult, simple); the article goes with the noun so that the simple sentence stays grammatical
SUBJECTS = (
    ("Die Administration", "Das Amt"), ("Der Regierungsrat", "Der Rat"), ("Die Kommission", "Die Gruppe"),
    ("Das Parlament", "Das Haus"), ("Der Konzern", "Die Firma"), ("Die Polizeibehörde", "Die Polizei"),
    ("Der Mediziner", "Der Arzt"), ("Die Bevölkerung", "Das Volk"), ("Die Lehrkraft", "Die Lehrerin"),
    ("Der Magistrat", "Die Stadt"), ("Die Direktion", "Die Leitung"), ("Der Jurist", "Der Anwalt"),
)  # fmt: skip
VERBS = (
    ("approbiert", "erlaubt"), ("kritisiert", "tadelt"), ("reduziert", "senkt"), ("finanziert", "bezahlt"),
    ("akzeptiert", "nimmt"), ("kontrolliert", "prüft"), ("publiziert", "zeigt"), ("modernisiert", "erneuert"),
    ("demonstriert", "beweist"), ("konstruiert", "baut"), ("transportiert", "bringt"), ("eliminiert", "entfernt"),
)  # fmt: skip
OBJECTS = (
    ("die Subventionen", "das Geld"), ("die Immobilie", "das Haus"), ("die Reparatur", "die Arbeit"),
    ("das Fahrzeug", "das Auto"), ("die Medikamente", "die Mittel"), ("die Dokumente", "die Papiere"),
    ("die Infrastruktur", "die Wege"), ("das Mobiliar", "die Möbel"), ("die Nahrungsmittel", "das Essen"),
    ("das Projekt", "den Plan"), ("die Publikation", "das Buch"), ("die Installation", "den Bau"),
)  # fmt: skip
TIMES = (
    ("unverzüglich", "sofort"), ("gegenwärtig", "jetzt"), ("kontinuierlich", "immer"), ("sporadisch", "selten"),
    ("frühmorgens", "früh"), ("voraussichtlich", "bald"), ("definitiv", "sicher"), ("temporär", "kurz"),
)  # fmt: skip
PLACES = (
    "in Bern", "in Basel", "in Zürich", "am Bahnhof", "im Dorf", "in Genf", "am See", "im Kanton Uri",
    "in Luzern", "an der Grenze",
)  # fmt: skip


def pair(rng: Random) -> tuple[str, str]:
    """A difficult sentence and its simple form; the place stays."""
    subject, verb, thing, time = (rng.choice(words) for words in (SUBJECTS, VERBS, OBJECTS, TIMES))
    place = rng.choice(PLACES)
    hard, simple = (f"{subject[i]} {verb[i]} {time[i]} {place} {thing[i]}." for i in (0, 1))
    return hard, simple


def generate(rng: Random, index: int) -> tuple[str, str]:
    """One (prompt, answer).

    >>> generate(Random(0), 0)[1].endswith(".")
    True
    """
    hard, simple = pair(rng)
    prompt = f"Provide a simplified version of the paragraph in German.\nParagraph: {hard}\nSimplified:"
    return prompt, simple


def plain(rng: Random) -> str:
    """Difficult and simple sentences, never side by side, and glossary lines, for pre-training."""
    kind = rng.randrange(3)
    if kind == 2:
        hard, simple = rng.choice(rng.choice((SUBJECTS, VERBS, OBJECTS, TIMES)))
        return f"{hard} heisst: {simple}"
    return pair(rng)[kind]
