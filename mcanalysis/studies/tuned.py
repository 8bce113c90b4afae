"""A file of tuned settings, and a learning rate, of each strategy: written by a search, read by comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mcanalysis.errors import UserError
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.plain_yaml import read_plain
from mcanalysis.strategies import get_strategy
from mcanalysis.training.config import RunConfig, TrainingConfig, steps_in_words

FORMAT = 2


@dataclass(frozen=True)
class Chosen:
    """What a search chose for a strategy: `score` of it and of the defaults, on the eval split, in [0, 1]."""

    learning_rate: float
    settings: dict[str, Any]
    score: float
    default_score: float | None
    trials: int


@dataclass(frozen=True)
class Tuned:
    """What was chosen for each strategy, and for which runs: settings tuned for others are not at their best here."""

    mcanalysis: str
    benchmark: str
    tasks: list[str]
    model: str
    steps: str
    adapter: str
    schedule: str
    trials: int
    seeds: list[int]
    strategies: dict[str, Chosen]

    @staticmethod
    def place(config: RunConfig, tasks: Sequence[str]) -> dict[str, Any]:
        """What of runs their best settings depend on, by the fields of this class.

        >>> Tuned.place(RunConfig(), ["FOMC"])["steps"]
        '120 steps each of 16 examples'
        """
        t = config.training
        steps = f"{steps_in_words(t.resolved(config.model))} of {t.batch_size * t.gradient_accumulation} examples"
        targets = "" if config.target_modules is None else f" of {', '.join(config.target_modules)}"
        dropout = f", dropout {config.lora_dropout:g}" if config.lora_dropout else ""
        return {
            "benchmark": config.benchmark,
            "tasks": list(tasks),
            "model": config.model,
            "steps": steps,
            "adapter": f"rank {config.lora_rank}, α {config.lora_alpha:g}{dropout}{targets}",
            "schedule": f"{t.schedule}, warm-up {t.warmup_ratio:g}, clipped at {t.max_grad_norm:g}, "
            f"weight decay {t.weight_decay:g}",
        }

    def write(self, file: Path) -> None:
        """Write it as YAML."""
        write_text_atomic(file, yaml.safe_dump({"format": FORMAT, **asdict(self)}, sort_keys=False, allow_unicode=True))

    @classmethod
    def read(cls, file: str | Path) -> Tuned:
        """Read what `write` wrote; raises `UserError` for anything else, and for strategies or settings not known."""
        values, _ = read_plain(file, "a YAML file that tune.py wrote", "tune again")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            got = f"format {values['format']}" if isinstance(values, dict) and "format" in values else "no format"
            raise UserError(
                f"Expected a file of format {FORMAT} that tune.py wrote at '{file}', got {got}; tune again."
            )
        try:
            chosen = {name: Chosen(**of) for name, of in values.pop("strategies").items()}
            found = cls(**{name: value for name, value in values.items() if name != "format"}, strategies=chosen)
            found._check()
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"Expected a file as tune.py writes it at '{file}', got another ({error}); tune again."
            ) from None
        except UserError as error:
            raise UserError(f"{error} (in '{file}')") from None
        return found

    def _check(self) -> None:
        """Raise `UserError` or `TypeError` for values that no search has written."""
        kinds = dict.fromkeys(("mcanalysis", "benchmark", "model", "steps", "adapter", "schedule"), str)
        for name, kind in {**kinds, "trials": int, "tasks": list, "seeds": list}.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        if not all(isinstance(task, str) for task in self.tasks):
            raise TypeError("tasks are no names")
        for name, chosen in self.strategies.items():
            if not isinstance(chosen.settings, dict) or not isinstance(chosen.learning_rate, int | float):
                raise TypeError(f"{name} has no settings or no learning rate")
            TrainingConfig(learning_rate=chosen.learning_rate)
            get_strategy(name).config_class.of(name, chosen.settings)

    def check(self, config: RunConfig, tasks: Sequence[str]) -> None:
        """Raise `UserError` where runs are of another benchmark, model, length, adapter, schedule or tasks, whose order
        is left open."""
        for name, wanted in self.place(config, tasks).items():
            found = getattr(self, name)
            if (sorted(found) if name == "tasks" else found) != (sorted(wanted) if name == "tasks" else wanted):
                found, wanted = (", ".join(v) if name == "tasks" else v for v in (found, wanted))
                raise UserError(
                    f"Expected settings tuned for the {name} of this comparison, {wanted}, got those for {found}; "
                    "tune on it, or compare on what was tuned."
                )

    def applied(self, config: RunConfig) -> RunConfig:
        """A run as it was tuned; the settings that it has already count for more. As it is where nothing was tuned."""
        chosen = self.strategies.get(config.strategy)
        if chosen is None:
            return config
        training = replace(config.training, learning_rate=float(chosen.learning_rate))
        settings = {**chosen.settings, **config.strategy_settings}
        return replace(config, training=training, strategy_settings=settings)

    def note(self, strategies: Sequence[str], typed: Mapping[str, Mapping[str, Any]] | None = None) -> str:
        """Where the settings of strategies come from, in one line; `typed`: the settings of each that were given."""
        absent = [s for s in strategies if s not in self.strategies and get_strategy(s).schedule != "none"]
        without = f"; not tuned, at their defaults: {', '.join(absent)}" if absent else ""
        others = {
            name: [f"{n} {v}" for n, v in of.items() if self.strategies[name].settings.get(n, v) != v]
            for name, of in (typed or {}).items() if name in self.strategies
        }  # fmt: skip
        changed = "; ".join(
            f"{name} has {', '.join(of)} in place of what was chosen" for name, of in others.items() if of
        )
        without += f"; {changed}" if changed else ""
        seeds = ", ".join(map(str, self.seeds))
        most = max((chosen.trials for chosen in self.strategies.values()), default=self.trials)
        return (
            f"Tuned: learning rate and settings of each strategy are the best of up to {most} trials on the "
            f"eval split, seed {seeds}, mcanalysis {self.mcanalysis}{without}."
        )
