"""FOMC stand-in: is a sentence from a central bank's minutes dovish, hawkish or neutral?"""

from __future__ import annotations

from random import Random

NAME = "FOMC"
MAX_NEW_TOKENS = 2  # enough to see a letter end

SPEAKERS: tuple[str, ...] = (
    "Most participants", "Several members", "A few governors", "The staff", "The chair", "Many economists",
    "Some officials", "The vice chair", "Two presidents", "Analysts", "Other participants", "The committee",
)  # fmt: skip
VERBS: tuple[str, ...] = (
    "noted that",
    "judged that",
    "agreed that",
    "said that",
    "remarked that",
    "reported that",
    "wrote that",
)
DOVISH: tuple[str, ...] = (
    "slack remains in the labor market", "inflation runs below target", "further easing is warranted",
    "asset purchases should continue", "growth is too weak", "unemployment is still high",
    "rates should stay low", "demand needs more stimulus", "deflation is the main danger",
    "credit must become cheaper", "patience is needed before any increase", "weak wages call for accommodation",
)  # fmt: skip
HAWKISH: tuple[str, ...] = (
    "inflation pressures are building", "rates will need to rise", "the economy is overheating",
    "asset purchases should end", "growth is too fast", "prices are climbing sharply",
    "policy should tighten soon", "demand must be restrained", "runaway costs are the main danger",
    "credit must become scarcer", "firm action on prices is needed", "strong wages call for restraint",
)  # fmt: skip
NEUTRAL: tuple[str, ...] = (
    "the survey covers twelve districts", "the next meeting is in the spring", "the report has four sections",
    "the minutes appear on Tuesday", "data will be revised in the fall", "the models were compared again",
    "the vote was held by mail", "the tables follow in the appendix", "the outlook is little changed",
    "the risks are roughly balanced", "the forum discussed payment systems", "the schedule remains as announced",
)  # fmt: skip
TIMES: tuple[str, ...] = (
    "In March", "This quarter", "At the meeting", "Since the summer", "Over the year", "Last week",
    "In recent months", "By the same token", "On balance", "In the district reports",
)  # fmt: skip


def text(rng: Random, label: int) -> str:
    """One or two clauses of reported speech."""
    own = (DOVISH, HAWKISH, NEUTRAL)[label]
    clauses = [rng.choice(own)]
    if rng.random() < 0.4:
        other = rng.choice(NEUTRAL if label < 2 else own)
        if other != clauses[0]:
            clauses.insert(rng.randrange(2), other)
    body = f"{rng.choice(SPEAKERS)} {rng.choice(VERBS)} {' and '.join(clauses)}."
    if rng.random() < 0.4:
        body = f"{rng.choice(TIMES)}, {body[0].lower()}{body[1:]}"
    return body


def generate(rng: Random, index: int) -> tuple[str, str]:
    """One (prompt, answer); the label is `index` modulo 3.

    >>> generate(Random(0), 2)[1]
    'C'
    """
    label = index % 3
    prompt = (
        f"What is the monetary policy stance? A. dovish, B. hawkish, C. neutral.\nText: {text(rng, label)}\nStance:"
    )
    return prompt, "ABC"[label]


def plain(rng: Random) -> str:
    """Unlabelled text of this domain, for pre-training."""
    return text(rng, rng.randrange(3))
