"""A training step of I-LoRA against one of replay and a sequential one, on the same batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
from setups import MEMORY, embedded_examples, embedded_model, in_mid_sequence
from step_parts import PARTS, part_seconds
from timing import step_costs, take_turns
from workload import Aim, Options, Section, Table

from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import Point
from mcanalysis.training.config import TrainingConfig

TITLE = "A training step: I-LoRA, replay, sequential"
STRATEGIES = ("sequential", "er", "ilora")
_HEADER = ("wall, ms", "", "processor, ms", "", "tokens with padding", "")

Case = tuple[list[EncodedExample], list[EncodedExample]]
"""What was seen earlier, and what is trained on now."""


def measure(options: Options) -> Section:
    model = embedded_model()
    start = model.point()
    tasks = embedded_examples(model.tokenizer, 40 if options.quick else 500)
    settings = TrainingConfig(num_steps=3 if options.quick else 8)
    cases = {"one length": [_one_length(tasks)]}
    if not options.quick:
        cases = {"one length": 4 * cases["one length"], "the sequence": _sequence(tasks)}
    aims, rows, notes = [], [], []
    for name, parts in cases.items():
        costs = _costs(model, start, parts, settings, options)
        for one, other, limit in (("ilora", "er", 1.3), ("er", "sequential", 2.1)):
            value, detail = _ratio(costs[one], costs[other])
            aims.append(Aim(f"{one} step / {other} step, {name}", limit, value, detail=detail))
        for strategy in STRATEGIES:
            wall, processor, _, padded = _per_step(costs[strategy])
            base = _per_step(costs["sequential"])
            cells = [(f"{wall * 1e3:.1f}", wall / base[0]), (f"{processor * 1e3:.1f}", processor / base[1])]
            cells.append((f"{padded:.0f}", padded / base[3]))
            rows.append([name, strategy, *(text for value, times in cells for text in (value, f"× {times:.2f}"))])
        tokens = [float(np.mean([len(e) for case in parts for e in case[i]])) for i in (1, 0)]
        notes.append(f"Case “{name}”: {tokens[0]:.1f} tokens per current example, {tokens[1]:.1f} per remembered one.")
    shares = _shares(model, start, cases["one length"][0], settings, options.repetitions)
    batch = settings.batch_size
    return Section(
        aims,
        [
            Table(
                f"Milliseconds per step of {batch} current and (er, ilora) {batch} replayed examples, and times a "
                "sequential one; “processor” is the time this process ran, which other load on the machine lengthens "
                "less; tokens are those of the forward and backward pass (I-LoRA's slow forward walks through the "
                "replayed ones once more).",
                [["case", "strategy", *_HEADER], *rows],
            ),
            Table(
                "Where a step goes, in percent of it; case “one length”, under the profiler, which makes many small "
                "operations look dearer than they are. Backward work counts for the part that made it.",
                shares,
            ),
        ],
        [
            f"Through `TaskTrainer`, defaults of every strategy; {options.repetitions} turns of "
            f"{settings.num_steps - 1} timed steps per strategy and task (one length: four times these), each "
            "on the same current and the same replayed rows; per step the median over the turns, then the mean over "
            "steps; in brackets the range over turns, and the ratio of processor time.",
            "Case “one length”: every example has 36 tokens, so a replay step has exactly twice the tokens of a "
            "sequential one, without padding. Case “the sequence”: tasks 2 to 8 of the embedded benchmark, replay from "
            f"a memory of {MEMORY} examples of the tasks before; current and replayed rows are padded to the longest "
            "of both, so er / sequential holds the difference of their lengths, too.",
            *notes,
        ],
    )


def _one_length(tasks: Mapping[str, Sequence[EncodedExample]]) -> Case:
    examples = [e for task in tasks.values() for e in task if len(e) == 36]
    Random(0).shuffle(examples)
    half = len(examples) // 2
    return examples[:half][:MEMORY], examples[half:]


def _sequence(tasks: Mapping[str, Sequence[EncodedExample]]) -> list[Case]:
    """For each task from the second on: a memory of those before it, and its examples."""
    cases, seen, rng = [], list[EncodedExample](), Random(0)
    for examples in tasks.values():
        if seen:
            cases.append((rng.sample(seen, min(MEMORY, len(seen))), list(examples)))
        seen += examples
    return cases


def _costs(
    model: LoraModel, start: Point, cases: Sequence[Case], settings: TrainingConfig, options: Options
) -> dict[str, np.ndarray]:
    """Per strategy the `StepCosts` as one array of shape (turns, 4, steps of all cases)."""

    def way(strategy: str, case: Case) -> np.ndarray:
        model.load_point(start)
        return np.array(step_costs(model, in_mid_sequence(strategy, model, *case), case[1], settings))

    ways = {f"{k} {s}": (lambda s=s, case=case: way(s, case)) for k, case in enumerate(cases) for s in STRATEGIES}
    for warm_up in [] if options.quick else list(ways.values())[: len(STRATEGIES)]:
        warm_up()
    found = take_turns(ways, options.repetitions)
    return {s: np.concatenate([found[f"{k} {s}"] for k in range(len(cases))], axis=2) for s in STRATEGIES}


def _per_step(costs: np.ndarray) -> np.ndarray:
    """Per step the median over the turns; of these the mean."""
    return np.median(costs, axis=0).mean(1)


def _ratio(one: np.ndarray, other: np.ndarray) -> tuple[float, str]:
    """The ratio of seconds by the wall clock; as text its range over the turns, and the processor's ratio."""
    turns = one[:, 0].sum(1) / other[:, 0].sum(1)
    wall, processor = (_per_step(one) / _per_step(other))[:2]
    return float(wall), f"({turns.min():.2f} to {turns.max():.2f}; processor {processor:.2f})"


def _shares(model: LoraModel, start: Point, case: Case, settings: TrainingConfig, repetitions: int) -> list[list[str]]:
    """The table of parts: of each the share in a step, the median over turns (a slow turn is slow in all parts)."""

    def way(strategy: str) -> np.ndarray:
        model.load_point(start)
        parts = part_seconds(model, in_mid_sequence(strategy, model, *case), case[1], settings)
        return 100 * np.array(list(parts.values())) / sum(parts.values())

    turns = take_turns({s: (lambda s=s: way(s)) for s in STRATEGIES}, repetitions)
    found = {s: np.median(turns[s], axis=0) for s in STRATEGIES}
    return [["part", *STRATEGIES], *([p, *(f"{found[s][i]:.1f}" for s in STRATEGIES)] for i, p in enumerate(PARTS))]
