"""MedMCQA stand-in: a case with two findings, four options whose order is fixed by the family of question."""

from __future__ import annotations

from random import Random

NAME = "MedMCQA"
MAX_NEW_TOKENS = 2  # enough to see a letter end

# question, options A to D, findings that point to each option
FAMILIES = (
    ("Which vitamin is lacking?", ("vitamin A", "vitamin B", "vitamin C", "vitamin D"), (
        ("night blindness", "dry eyes", "Bitot spots", "rough skin"),
        ("beriberi", "numb feet", "a red tongue", "nerve pain"),
        ("bleeding gums", "loose teeth", "slow healing", "bruises"),
        ("rickets", "bowed legs", "soft bones", "bone pain"))),
    ("Which organ is affected?", ("heart", "lung", "liver", "kidney"), (
        ("chest pressure", "palpitations", "a new murmur", "swollen ankles"),
        ("wheezing", "a dry cough", "fast breathing", "blue lips"),
        ("jaundice", "dark bile", "spider veins", "yellow eyes"),
        ("foamy urine", "flank pain", "no urine", "high creatinine"))),
    ("Which germ is the cause?", ("virus", "bacterium", "fungus", "parasite"), (
        ("a measles rash", "flu fever", "shingles", "warts"),
        ("a purulent wound", "tetanus", "cholera", "whooping cough"),
        ("oral thrush", "ringworm", "athlete's foot", "nail mould"),
        ("malaria", "worm eggs", "scabies", "amoebae"))),
    ("Which drug helps?", ("insulin", "penicillin", "aspirin", "morphine"), (
        ("high blood sugar", "great thirst", "sweet urine", "ketones"),
        ("strep throat", "syphilis", "scarlet fever", "erysipelas"),
        ("a mild headache", "a blood clot", "joint ache", "low fever"),
        ("severe pain", "burn pain", "cancer pain", "crush injury"))),
)  # fmt: skip
PATIENTS = ("man", "woman", "boy", "girl", "farmer", "nurse", "sailor", "teacher", "student", "baker")
VERBS = ("has", "presents with", "complains of", "is seen for", "reports")


def case(rng: Random, family: tuple, option: int) -> str:
    """A patient with two findings of one option."""
    first, second = rng.sample(family[2][option], 2)
    return f"A {rng.choice(PATIENTS)} {rng.choice(VERBS)} {first} and {second}."


def generate(rng: Random, index: int) -> tuple[str, str]:
    """One (prompt, answer); the right option is `index` modulo 4.

    >>> generate(Random(0), 3)[1]
    'D'
    """
    family, option = rng.choice(FAMILIES), index % 4
    options = "\n".join(f"{letter}. {name}" for letter, name in zip("ABCD", family[1], strict=True))
    return f"{case(rng, family, option)} {family[0]}\n{options}\nAnswer:", "ABCD"[option]


def plain(rng: Random) -> str:
    """Facts of this domain as plain sentences, for pre-training."""
    family, option = rng.choice(FAMILIES), rng.randrange(4)
    if rng.random() < 0.5:
        return case(rng, family, option)
    return f"{case(rng, family, option)} Think of {family[1][option]}."
