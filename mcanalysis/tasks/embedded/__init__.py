"""The embedded benchmark: eight generated stand-ins for the paper's tasks; adding one is adding a file here.

They have the prompt shape, the form of answer and the metric of the originals, but small vocabularies and fixed
grammars: they show forgetting and its remedies in minutes and say nothing about the data sets themselves.
Each file has `NAME`, `MAX_NEW_TOKENS`, `generate(rng, index) -> (prompt, answer)` and `plain(rng) -> str`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from types import ModuleType
from typing import TYPE_CHECKING

from mcanalysis.errors import UserError
from mcanalysis.registry import Registry

if TYPE_CHECKING:
    from mcanalysis.tasks.task import TaskData

SPLITS = ("train", "eval", "test")
_GRAMMARS: Registry[ModuleType] = Registry("embedded task", __name__, "NAME")


def grammars() -> Mapping[str, ModuleType]:
    """The grammar modules by task name.

    >>> sorted(grammars())[0]
    '20Minuten'
    """
    return _GRAMMARS.all()


def generate_task(
    name: str,
    seed: int = 0,
    num_train: int = 1000,
    num_eval: int = 100,
    num_test: int = 200,
    test_seed: int | None = None,
) -> TaskData:
    """Generate one task: disjoint splits of distinct prompts, the same on every machine.

    A prompt appears once in the whole task, so none of the test prompts is in train. Python's Mersenne Twister is
    seeded with a string and every choice goes through `Random`, so the result depends on nothing else. `test_seed`
    gives test examples of their own, none of which is in the usual test split; the other splits stay as they are.

    >>> task = generate_task("FOMC", num_train=6, num_eval=3, num_test=3)
    >>> [len(task.splits[s]) for s in ("train", "eval", "test")]
    [6, 3, 3]
    """
    from mcanalysis.tasks import get_task
    from mcanalysis.tasks.task import Example, TaskData

    grammar = _GRAMMARS.get(name)
    sizes = dict(zip(SPLITS, (num_train, num_eval, num_test), strict=True))
    for split, size in sizes.items():
        if size < 1:
            raise UserError(f"Expected at least 1 {split} example, got {size}; ask for more.")
    rng = Random(f"mcanalysis-embedded-1/{name}/{seed}")
    drawn = [(split, rng, size) for split, size in sizes.items()]
    if test_seed is not None:  # after the usual ones, so that these are seen
        drawn.append(("test", Random(f"mcanalysis-embedded-1/{name}/{seed}/test/{test_seed}"), num_test))
    seen: set[str] = set()
    splits: dict[str, tuple[Example, ...]] = {}
    for split, rng, size in drawn:
        examples: list[Example] = []
        misses = 0
        while len(examples) < size:
            prompt, answer = grammar.generate(rng, len(examples))
            if prompt in seen:
                misses += 1
                if misses > 1000:  # the grammar is nearly used up
                    raise UserError(
                        f"Expected at most about {len(seen)} distinct {name} prompts, got a request for "
                        f"{sum(sizes.values())}; ask for fewer."
                    )
                continue
            misses = 0
            seen.add(prompt)
            examples.append(Example(prompt, answer))
        rng.shuffle(examples)
        splits[split] = tuple(examples)
    task = replace(get_task(name), max_new_tokens=grammar.MAX_NEW_TOKENS)
    return TaskData.of(task, splits)
