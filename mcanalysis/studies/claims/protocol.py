"""The protocol of the study: which runs there are, fixed before any of them is trained. Every choice stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mcanalysis.errors import UserError
from mcanalysis.strategies import get_strategy, strategy_names
from mcanalysis.studies.strategies import run_name
from mcanalysis.studies.tuned import Tuned
from mcanalysis.training.config import RunConfig, TrainingConfig

NO_RIVALS = ("zero_shot", "individual", "joint", "sequential", "er", "ilora", "mc_sgd")
"""What is never "the best other": bounds, those compared anyway, and `mc_sgd`, which trains twice as many steps."""

GIVEN = {"memory_size": 100, "gem.memory_per_task": 12, "agem.reference_batch_size": 16}
"""Settings that are a budget, which no search chooses: 100 examples (of GEM 12 of each of 8 tasks), a batch of them."""


@dataclass(frozen=True)
class Change:
    """How a run of a part differs from that of the main part: by settings, fields of its `RunConfig`, its rate."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    rate_factor: float = 1.0

    def applied(self, config: RunConfig) -> RunConfig:
        """The changed run."""
        rate = config.training.rate_for(config.model) * self.rate_factor  # of the base that the main part has
        training = config.training
        if self.rate_factor != 1 or "model" in self.fields:
            training = replace(training, learning_rate=float(f"{rate:.3g}"))
        settings = {**config.strategy_settings, **self.settings}
        return replace(config, strategy_settings=settings, training=training, **self.fields)


@dataclass(frozen=True)
class Part:
    """Some strategies at the first `num_pairs` pairs, each with each change.

    `measured`: the names of `measures`, each with the number of pairs that it is taken at. `{best}` among the
    strategies is the best other one of the search, `others` are all that are left.
    """

    name: str
    about: str
    strategies: tuple[str, ...]
    num_pairs: int
    measured: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=lambda: {"": Change()})


@dataclass(frozen=True)
class Planned:
    """A run of the study; `label` is the name of its change."""

    part: str
    label: str
    pair: int
    config: RunConfig
    measured: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its run directory and of its result files."""
        return run_name(self.config) + (f"-{self.label}" if self.label else "")

    @property
    def folder(self) -> str:
        """Where these lie: unchanged runs together, as `compare.py --tuned` reads them."""
        return "tuned" if self.part in ("main", "others") else self.part


@dataclass(frozen=True)
class Protocol:
    """All of it.

    A pair is a seed and an order of the tasks, one for one: no two runs of a part with one strategy and change share
    either.
    """

    base: RunConfig
    real: RunConfig | None
    parts: tuple[Part, ...]
    general: str = "pretraining"
    num_points: int = 11
    num_examples: int = 50
    num_gauges: int = 3
    num_samples: int = 40
    curve_steps: int = 60

    def pairs(self, base: RunConfig, number: int) -> list[tuple[int, str]]:
        """Seed and order of each pair."""
        from mcanalysis.benchmarks import get_benchmark
        from mcanalysis.benchmarks.orders import order_names

        known = get_benchmark(base.benchmark)
        if not set(base.tasks or known.tasks) <= set(known.tasks):  # a folder's own tasks: its orders are shuffled ones
            known = replace(known, orders={})
        return list(enumerate(order_names(known, number, base.tasks)))

    def planned(self, part: Part, tuned: Tuned) -> list[Planned]:
        """The runs of a part, pair by pair, so that one that is stopped has whole pairs."""
        base = self.real if part.name == "real" else self.base
        assert base is not None
        strategies = [s.format(best=best_other(tuned)) for s in part.strategies]
        if "others" in strategies:
            named = {"sequential", "er", "ilora", best_other(tuned)}
            strategies = [s for s in strategy_names() if s not in named and s in tuned.strategies]
        found = []
        for pair, (seed, order) in enumerate(self.pairs(base, part.num_pairs)):
            for strategy in dict.fromkeys(strategies):
                run = replace(base, strategy=strategy, seed=seed, order=order, strategy_settings=given(strategy, base))
                run = run if part.name == "real" else tuned.applied(run)
                changed = {label: change.applied(run) for label, change in part.changes.items() if takes(run, change)}
                measured = tuple(name for name, number in part.measured.items() if pair < number)
                found += [
                    Planned(part.name, label, pair, config, measurable(config, measured))
                    for label, config in changed.items()
                ]
        return found


def given(strategy: str, base: RunConfig) -> dict[str, Any]:
    """The settings of `GIVEN`, and of the base, that a strategy has."""
    known = {f.name for f in fields(get_strategy(strategy).config_class)}
    found: dict[str, Any] = {}
    for full, value in {**GIVEN, **base.strategy_settings}.items():
        owner, _, name = full.rpartition(".")
        if name in known and owner in ("", strategy):
            found[name] = value
    return found


def takes(run: RunConfig, change: Change) -> bool:
    """Whether the strategy of a run has the settings of a change."""
    return set(change.settings) <= {f.name for f in fields(get_strategy(run.strategy).config_class)}


def measurable(config: RunConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Those measures that a run has something for: paths need minima one after another, and LoRA adapters."""
    kind = get_strategy(config.strategy)
    return tuple(names) if kind.has_paths and kind.schedule == "sequence" else ()


def best_other(tuned: Tuned) -> str:
    """The strategy with the highest score of the search beside those in `NO_RIVALS`, the first of equals."""
    scores = {name: of.score for name, of in tuned.strategies.items() if name not in NO_RIVALS}
    if not scores:
        raise UserError("Expected tuned settings of more strategies than those compared anyway; tune --strategy all.")
    return max(scores, key=lambda name: scores[name])


def memory_sizes(*sizes: int) -> dict[str, Change]:
    """A change per size of the memory."""
    return {f"memory{n}": Change({"memory_size": n}) for n in sizes}


FOUR = ("sequential", "er", "ilora", "{best}")
THREE = FOUR[:3]

OF_ILORA = {
    "no-consistency": Change({"consistency_weight": 0.0}),
    "product": Change({"average_in": "product"}),
    "reset": Change({"reset_at_task": True}),
}
"""What of I-LoRA does it: `no-consistency` is the average alone, the fast learner of the main runs the loss alone."""

OF_RUNS = {
    "rank2": Change(fields={"lora_rank": 2, "lora_alpha": 4.0}),
    "rank32": Change(fields={"lora_rank": 32, "lora_alpha": 64.0}),
    "rate-third": Change(rate_factor=1 / 3),
    "rate-triple": Change(rate_factor=3.0),
}

BASES = {"small": {"hidden_size": 64, "num_layers": 2}, "large": {"hidden_size": 192, "num_layers": 4}}
"""Bases of the embedded one's family, beside its 128 × 3: the same text, tokenizer and steps, by `pretrain.py`."""

BASE_MINUTES = {"small": 10, "large": 80}
"""What one may take on a core, not measured: the embedded one's 27 minutes times width² × depth is 4.5 and 81, and what
a step takes whatever the size is more of the small one. It is trained in one go or not at all."""

FULL = Protocol(
    base=RunConfig(benchmark="study", num_test=100, training=TrainingConfig(num_steps=50)),
    real=RunConfig(
        model="smollm2", benchmark="trace", data_dir="data/bigbench", tasks=("Plural", "PastTense", "Negation"),
        num_test=80, sizes={"train": 400}, strategy_settings={"ilora.ema_decay": 0.8},
        training=TrainingConfig(num_steps=16, batch_size=8, learning_rate=1e-3, max_length=384),
    ),
    parts=(
        Part("main", "what is compared", FOUR, 15, {"paths": 15, "signals": 15, "region": 4, "rewinding": 4}),
        Part("ilora", "which part of I-LoRA does it", ("ilora",), 15, changes=OF_ILORA),
        Part("memory", "the size of the memory", ("er", "ilora"), 4, changes=memory_sizes(25, 50, 200, 400)),
        Part("others", "every other strategy", ("others",), 4, {"line": 4}),
        Part("scale", "rank and learning rate", THREE, 4, {"line": 4}, OF_RUNS),
        Part("real", "SmolLM2 on real tasks", FOUR, 4, {"line": 4}),
        Part("bases", "size of the base", THREE, 4, {"line": 4}, {n: Change(fields={"model": n}) for n in BASES}),
    ),
)  # fmt: skip

QUICK = Protocol(
    base=replace(
        FULL.base,
        tasks=("C-STANCE", "FOMC", "NumGLUE-cm"),
        num_test=40,
        training=TrainingConfig(num_steps=20),
    ),
    real=None,
    num_points=5,
    num_examples=16,
    num_gauges=1,
    num_samples=10,
    curve_steps=20,
    parts=(
        Part("main", "what is compared", FOUR, 3, {"paths": 3, "signals": 3, "region": 2, "rewinding": 2}),
        Part("ilora", "which part of I-LoRA does it", ("ilora",), 3, changes=OF_ILORA),
        Part("memory", "the size of the memory", ("er", "ilora"), 2, changes=memory_sizes(25)),
        Part("scale", "rank and learning rate", ("sequential",), 2, {"line": 2}, OF_RUNS),
    ),
)
"""A small version of every table, in minutes: settings tuned for longer runs, and nothing to conclude from."""
