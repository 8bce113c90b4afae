"""ScienceQA stand-in: a two-choice question with a letter and a reason; each family of question has a fixed option order."""

from __future__ import annotations

from random import Random

NAME = "ScienceQA"
MAX_NEW_TOKENS = 2  # enough to see a letter end

# question, (option A, option B), and for each option its members and what is observed of them
FAMILIES = (
    ("Which group is it?", ("mammal", "bird"),
     (("horse", "whale", "bat", "rabbit", "tiger", "otter"), ("has fur", "drinks milk", "has paws", "is furry")),
     (("heron", "eagle", "owl", "penguin", "swan", "stork"), ("has a beak", "lays eggs", "has feathers", "builds a nest"))),
    ("Does it carry current?", ("conductor", "insulator"),
     (("copper", "silver", "iron", "gold", "zinc", "steel"), ("is a metal", "shines", "lights the lamp", "gets hot fast")),
     (("rubber", "glass", "wood", "paper", "wool", "wax"), ("is no metal", "is dull", "keeps the lamp dark", "stays cool"))),
    ("Which source is it?", ("renewable", "fossil"),
     (("wind", "sunlight", "biogas", "hydropower"), ("never runs out", "is clean", "comes back daily", "leaves no soot")),
     (("coal", "petrol", "diesel", "lignite"), ("is dug up", "smokes", "is burned once", "formed from old plants"))),
    ("Which state is it?", ("liquid", "gas"),
     (("water", "milk", "vinegar", "mercury"), ("fills a cup", "drips", "can be poured", "forms drops")),
     (("oxygen", "helium", "methane", "neon"), ("fills the room", "lifts a balloon", "cannot be seen", "leaks as a cloud"))),
)  # fmt: skip
SETTINGS = ("{n} sees:", "{n} reads:", "{n} notes:", "{n} asks:", "{n} learns:", "{n} says:")
PEOPLE = ["Luke", "Maya", "Omar", "Nina", "Paul", "Rosa", "Theo", "Vera", "Iris", "Jack", "Lena", "Sam"]


def observation(rng: Random, family: tuple, option: int) -> tuple[str, str]:
    """A member of an option and what is observed of it."""
    members, properties = family[2 + option]
    return rng.choice(members), rng.choice(properties)


def generate(rng: Random, index: int) -> tuple[str, str]:
    """One (prompt, answer); the right option is `index` modulo 2.

    >>> generate(Random(0), 1)[1].split("\\n")[0]
    'B'
    """
    family, option = rng.choice(FAMILIES), index % 2
    x, what = observation(rng, family, option)
    setting = rng.choice(SETTINGS).format(n=rng.choice(PEOPLE))
    prompt = (
        f"Choose an answer and a reason.\nQuestion: {setting} the {x} {what}. {family[0]}\n"
        f"Choices:\nA. {family[1][0]}\nB. {family[1][1]}\nAnswer:"
    )
    return prompt, f"{'AB'[option]}\nIt is {family[1][option]}."


def plain(rng: Random) -> str:
    """Facts of this domain as plain sentences, for pre-training."""
    family, option = rng.choice(FAMILIES), rng.randrange(2)
    x, what = observation(rng, family, option)
    setting = rng.choice(SETTINGS).format(n=rng.choice(PEOPLE))
    return f"{setting} the {x} {what}. It is called {family[1][option]}."
