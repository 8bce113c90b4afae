"""MeetingBank stand-in: the summary of a council meeting is the item that the clerk reads out."""

from __future__ import annotations

from random import Random

NAME = "MeetingBank"
MAX_NEW_TOKENS = 24

KINDS: tuple[str, ...] = ("an ordinance", "a resolution", "a motion", "a bill", "a petition", "an appeal")
ACTIONS: tuple[str, ...] = (
    "to rezone", "to repair", "to lease", "to fund", "to close", "to rename", "to inspect", "to sell",
    "to light", "to extend", "to protect", "to rebuild",
)  # fmt: skip
THINGS: tuple[str, ...] = (
    "the library", "the bridge", "the water plant", "the parking lot", "the fire station", "the school roof",
    "the old mill", "the bus depot", "the market hall", "the bike path", "the city park", "the museum",
)  # fmt: skip
PLACES: tuple[str, ...] = (
    "on Maple Street", "on Third Avenue", "near the harbor", "in the north ward", "by the river",
    "on Mill Road", "in district five", "near the airport", "on Grand Boulevard", "at Union Square",
)  # fmt: skip
CHATTER: tuple[str, ...] = (
    "Good evening everyone.", "Thank you, council member.", "Please take your seats.", "The roll was called.",
    "Are there any comments?", "I hear none.", "We have a quorum.", "Can you turn on the microphone?",
    "The next speaker has two minutes.", "Let us stand for the pledge.", "Thanks for your patience.",
    "The chair is back.", "We return after the break.", "All in favor say aye.",
)  # fmt: skip


def item(rng: Random) -> str:
    """What is decided."""
    return f"{rng.choice(KINDS)} {rng.choice(ACTIONS)} {rng.choice(THINGS)} {rng.choice(PLACES)}"


def generate(rng: Random, index: int) -> tuple[str, str]:
    """One (prompt, answer): small talk around one item.

    >>> prompt, answer = generate(Random(0), 0)
    >>> answer in prompt
    True
    """
    decided = item(rng)
    lines = rng.sample(CHATTER, rng.choice((1, 1, 2)))
    lines.insert(rng.randrange(len(lines) + 1), f"Clerk: {decided}.")
    return f"Write a summary of the meeting transcript.\nTranscript: {' '.join(lines)}\nSummary:", decided


def plain(rng: Random) -> str:
    """Text of this domain without a summary, for pre-training."""
    verdict = rng.choice(("passed", "failed", "was postponed", "was read twice"))
    subject = item(rng)
    return f"{rng.choice(CHATTER)} {subject[0].upper()}{subject[1:]} {verdict}. {rng.choice(CHATTER)}"
