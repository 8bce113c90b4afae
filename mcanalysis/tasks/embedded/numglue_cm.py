"""NumGLUE-cm stand-in: word problems that add two numbers, now and then a weekday."""

from __future__ import annotations

from random import Random

NAME = "NumGLUE-cm"
MAX_NEW_TOKENS = 4

LARGEST = 20
PEOPLE = ["Mia", "Ben", "Ana", "Tom", "Zoe", "Max", "Eva", "Leo", "Kim", "Ida", "Gus", "Amy"]
OBJECTS = [
    "apples",
    "pencils",
    "stamps",
    "marbles",
    "coins",
    "books",
    "shells",
    "cards",
    "eggs",
    "cups",
    "kites",
    "balls",
    "roses",
    "keys",
    "nuts",
    "boats",
]
STORIES = (
    "{n} has {a} {o} and gets {b} more. How many {o} are there now?",
    "There are {a} {o} in a box and {b} {o} on a shelf. How many in total?",
    "{n} found {a} {o} on one day and {b} on the next. How many {o} in all?",
    "A shop sold {a} {o} before noon and {b} after noon. How many {o} were sold?",
    "{n} packs {a} {o}, then {b} {o}. What is the total?",
    "After giving away {b} {o}, {n} has {a} left. How many {o} were there at first?",
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
DAY_STORIES = (
    "{n} paints {o} on {d} and rests on the next day. On which day does {n} rest?",
    "{n} buys {o} on {d} and sells them one day later. On which day are they sold?",
)


def generate(rng: Random, index: int) -> tuple[str, str]:
    """One (prompt, answer): a sum of two numbers from 1 to 20, or in one case of twenty the next weekday.

    >>> generate(Random(0), 1)[1].isdigit()
    True
    """
    name, thing = rng.choice(PEOPLE), rng.choice(OBJECTS)
    if index % 20 == 0:
        day = rng.randrange(7)
        story = rng.choice(DAY_STORIES).format(n=name, o=thing, d=DAYS[day])
        answer = DAYS[(day + 1) % 7]
    else:
        a, b = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
        story = rng.choice(STORIES).format(n=name, o=thing, a=a, b=b)
        answer = str(a + b)
    return f"Solve the math problem.\nQuestion: {story}\nAnswer:", answer


def plain(rng: Random) -> str:
    """Text of this domain without a solution, and sums as formulas, for pre-training."""
    a, b, day = rng.randint(1, LARGEST), rng.randint(1, LARGEST), rng.randrange(7)
    kind = rng.randrange(8)
    if kind < 5:
        return f"{a} + {b} = {a + b}"
    if kind == 5:
        return f"{rng.choice(PEOPLE)} likes {rng.choice(OBJECTS)}. After {DAYS[day]} comes {DAYS[(day + 1) % 7]}."
    story = rng.choice(STORIES).format(n=rng.choice(PEOPLE), o=rng.choice(OBJECTS), a=a, b=b)
    return story[: story.rindex(".") + 1] if "." in story else story
