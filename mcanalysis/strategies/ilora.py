"""I-LoRA: a fast adapter learns, a slow one averages it; replay and a consistency loss tie the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import IGNORED, Batch, EncodedExample
from mcanalysis.models.forward import Forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.ema import ema_decay_at, ema_update_
from mcanalysis.params.lora import delta_norm, key_b, ranks
from mcanalysis.params.low_rank import concatenate
from mcanalysis.params.point import Point, interpolate
from mcanalysis.params.product_average import ProductAverage
from mcanalysis.replay.reservoir import Rehearsal
from mcanalysis.strategies.strategy import Step, Strategy, StrategyConfig

_CORRECTION = "correction."  # what the names of its tensors begin with in the state


@dataclass(frozen=True)
class IloraConfig(StrategyConfig):
    """Settings of I-LoRA.

    `ema_decay` (λ): larger is slower. The paper does not state the value it used; 0.95 is our default and LLMCL, its
    reference code, has 0.25. `warm_up`: λ_k = min(1 − 1/(k+1), λ), as in CLS-ER, its ancestor; without it λ throughout.
    k counts the steps of the whole run, so that λ is reached after λ/(1−λ) of them: 19 for 0.95, 999 for 0.999.
    `average_in`: `factor` averages A and B, as published; `product` averages ΔW = B·A. The latter's slow adapter has
    the rank `slow_rank` (None: four times that of fast): the average of the factors, exact, beside a correction of rank
    `slow_rank` − rank (see `ProductAverage`); `report` bounds its error after each task.
    `report_deviation`: report after each task how far the two averages part (‖ΔW_factor − ΔW_product‖ / ‖ΔW_product‖);
    always done in product space, and off in factor space, where it costs that space's bookkeeping.

    `consistency_weight` (γ), 1.0, is ours; the paper's is unknown. `consistency_on`: `hidden_states` of
    `consistency_layers` (the last so many blocks, None for all), over replayed tokens and width; or `logits`, over
    replayed answer tokens and vocabulary. `consistency_form`: `two_sided` is the mean squared difference; `one_sided`
    counts only where slow exceeds fast, as the reference code does.

    `memory_size`: examples in the reservoir (500, LLMCL's). `replay_from_first_step`: else from the second task on.
    `reset_at_task`: overwrite slow with fast when a task begins (erases long-term memory; off). `answering`: the
    learner whose scores count, `slow`, `fast`, or a number a in [0, 1]: a third one, `blend`, which is
    fast + a·(slow − fast) in the space of `average_in`.
    """

    ema_decay: float = 0.95
    warm_up: bool = True
    average_in: Literal["factor", "product"] = "factor"
    slow_rank: int | None = None
    report_deviation: bool = False
    consistency_weight: float = 1.0
    consistency_on: Literal["hidden_states", "logits"] = "hidden_states"
    consistency_layers: int | None = None
    consistency_form: Literal["two_sided", "one_sided"] = "two_sided"
    memory_size: int | float = 500
    replay_from_first_step: bool = False
    reset_at_task: bool = False
    answering: Literal["slow", "fast"] | float = "slow"

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay <= 1:
            raise UserError(
                f"Expected ema_decay in [0, 1], got {self.ema_decay}; choose a number near 1 for slow averages."
            )
        for name, choices in (
            ("average_in", ("factor", "product")),
            ("consistency_on", ("hidden_states", "logits")),
            ("consistency_form", ("two_sided", "one_sided")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"Expected {name} {' or '.join(choices)}, got '{getattr(self, name)}'; choose one.")
        is_number = isinstance(self.answering, (int, float)) and not isinstance(self.answering, bool)
        if not (0 <= self.answering <= 1 if is_number else self.answering in ("slow", "fast")):  # type: ignore[operator]
            raise UserError(
                f"Expected answering to be slow, fast or a number in [0, 1], got '{self.answering}'; choose one of "
                "these (1 is slow)."
            )
        if not self.consistency_weight >= 0:
            raise UserError(
                f"Expected a consistency_weight of at least 0, got {self.consistency_weight}; choose 0 to switch it "
                "off."
            )
        if self.consistency_layers is not None and self.consistency_layers < 1:
            raise UserError(
                f"Expected consistency_layers of at least 1, got {self.consistency_layers}; leave it out for all "
                "layers."
            )
        if self.consistency_layers is not None and self.consistency_on == "logits":
            raise UserError(
                f"Expected no consistency_layers where consistency is on the logits, got {self.consistency_layers}; "
                "leave it out, or set consistency_on=hidden_states."
            )
        if self.slow_rank is not None and self.average_in == "factor" and not self.report_deviation:
            raise UserError(
                f"Expected no slow_rank where factors are averaged, got {self.slow_rank}; leave it out "
                "(slow then has the rank of fast), or set average_in=product."
            )


class Ilora(Strategy):
    """½(CE current + CE replay) + γ·MSE(hidden states, or logits, of fast and slow on the replay batch).

    After every optimiser step slow ← λ_k·slow + (1−λ_k)·fast, λ_k = min(1 − 1/(k+1), λ), factor by factor or product by
    product, with k counted over the whole sequence of tasks. Slow starts as a copy of fast and persists at task
    boundaries.

    >>> Ilora.learners
    ('fast', 'slow')
    >>> Ilora(IloraConfig(answering=0.5), seed=0).learners
    ('fast', 'slow', 'blend')
    """

    name = "ilora"
    reference = "Ren et al. 2024, arXiv 2402.18865; ancestor: CLS-ER, Arani et al. 2022, arXiv 2201.12604"
    config_class = IloraConfig
    # 0.25 is LLMCL's; the other decays and the decades of the weight, which the paper does not state, are ours.
    searched = {"ema_decay": (0.25, 0.9, 0.95, 0.99), "consistency_weight": (0.1, 1.0, 10.0)}
    learners = ("fast", "slow")

    def __init__(self, config: IloraConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.rehearsal = Rehearsal(config.memory_size, seed, config.replay_from_first_step)
        self.slow: Point = {}  # the average of the factors
        self.num_updates = 0
        self._product: ProductAverage | None = None
        self._scale: dict[str, float] = {}
        if not isinstance(config.answering, str):
            self.learners = ("fast", "slow", "blend")  # type: ignore[misc]

    @property
    def answering_learner(self) -> str:
        return self.config.answering if isinstance(self.config.answering, str) else "blend"

    @property
    def slow_point(self) -> Point:
        """The slow adapter, in the space that is averaged in."""
        if self._product is not None and self.config.average_in == "product":
            return self._product.point(self.slow)
        return self.slow

    def begin(self, model: LoraModel, num_tasks: int) -> None:
        self.slow = model.point()
        self._scale = {key_b(module): scaling for module, scaling in model.scaling.items()}
        if self.config.average_in == "product" or self.config.report_deviation:
            rank = max(ranks(self.slow).values())
            slow_rank = 4 * rank if self.config.slow_rank is None else self.config.slow_rank
            if slow_rank <= rank:
                raise UserError(
                    f"Expected a slow_rank above the adapter's rank {rank}, got {slow_rank}; leave it out to "
                    f"use {4 * rank}, as an average of products needs room."
                )
            self._product = ProductAverage(slow_rank - rank)

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        if self.config.reset_at_task and task_index > 0:
            self.slow = model.point()
            if self._product is not None:
                self._product.reset()

    def draw_replay(self, number: int) -> list[EncodedExample]:
        return self.rehearsal.draw(number, self.task_index)

    def loss(self, step: Step) -> Tensor:
        if not step.num_replay:
            return step.current_loss(step.forward())
        weight = self.config.consistency_weight
        on_logits = self.config.consistency_on == "logits"
        result = step.forward(hidden_states=weight > 0 and not on_logits)
        loss = (step.current_loss(result) + step.replay_loss(result)) / 2
        if weight > 0:
            loss = loss + weight * (self._logit_gap if on_logits else self._state_gap)(step, result)
        return loss

    def _state_gap(self, step: Step, fast: Forward) -> Tensor:
        """Mean over layers, replayed tokens that are not padding, and width."""
        batch = step.replay_batch()
        # Without labels the output layer has nothing to do.
        unlabelled = replace(batch, labels=torch.full_like(batch.labels, IGNORED), num_answer_columns=1)
        slow_states, slow_mask = self._slow_forward(step, unlabelled, hidden_states=True)
        layers = slice(-self.config.consistency_layers if self.config.consistency_layers else None, None)
        fast_kept, slow_kept = (mask.flatten().nonzero()[:, 0] for mask in (batch.mask(), slow_mask))
        fast_kept = fast_kept + step.num_current * batch.mask().shape[1]  # replayed rows come after the current ones
        pairs = list(zip(fast.hidden_states[layers], slow_states.hidden_states[layers], strict=True))
        total = fast.nll.new_zeros(())
        for f, s in pairs:
            f, s = f.flatten(0, 1).index_select(0, fast_kept), s.flatten(0, 1).index_select(0, slow_kept)
            total = total + self._square(s, f)
        return total / (len(pairs) * step.totals.replay_tokens)

    def _logit_gap(self, step: Step, fast: Forward) -> Tensor:
        """Mean over the replayed answers' tokens and the vocabulary."""
        slow, _ = self._slow_forward(step, step.replay_batch())
        return self._square(slow.logits, fast.logits[fast.rows >= step.num_current]) / step.totals.replay_targets

    def _slow_forward(self, step: Step, batch: Batch, hidden_states: bool = False) -> tuple[Forward, Tensor]:
        """What slow computes, and the mask it saw: columns in which all rows are padded are left out."""
        batch = batch.trimmed()
        with torch.no_grad(), step.model.without_dropout():
            return step.model.forward_at(self.slow_point, batch, hidden_states), batch.mask()

    def _square(self, slow: Tensor, fast: Tensor) -> Tensor:
        """The sum over tokens, shape (tokens, width), of the mean over the width of the squared difference."""
        difference = slow.float() - fast.float()
        if self.config.consistency_form == "one_sided":
            difference = difference.relu()
        return difference.square().mean(-1).sum()

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        self.rehearsal.remember(examples, first_pass, self.task_index)
        self.num_updates += 1
        decay = self.config.ema_decay
        if self.config.warm_up:
            decay = ema_decay_at(self.num_updates, decay)
        update = ema_update_ if self._product is None else self._product.update_
        update(self.slow, model.parameters, decay, self._scale)

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        if self._product is None:
            return
        self._product.cut()  # so that the adapter that is saved has `slow_rank`
        size = delta_norm(self._product.point(self.slow))
        bound = self._product.error_bound / size if size else 0.0
        # One number per task; "truncation" bounds the error of the average of products, relative to its norm.
        self.report.setdefault("factor_product_deviation", []).append(self._product.deviation(self.slow))
        self.report.setdefault("product_truncation_bound", []).append(bound)

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        if learner == "fast":
            model.save(directory)
        elif learner == "slow":
            model.save(directory, self.slow_point)
        else:
            a = float(self.config.answering)
            mix = interpolate(model.point(), self.slow, a)
            if self.config.average_in == "product":
                mix = concatenate([model.point(), self.slow_point], [1 - a, a])
            model.save(directory, mix)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = dict(self.slow)
        values = {"num_updates": self.num_updates, "buffer": self.rehearsal.buffer.state(), "report": self.report}
        if self._product is not None:
            tensors |= {_CORRECTION + k: v for k, v in self._product.correction.items()}
            values["error_bound"] = self._product.error_bound
        return tensors, values

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        device = model.device
        self.slow = {k: tensors[k].to(device) for k in self.slow}
        self.num_updates = int(values["num_updates"])
        self.rehearsal.buffer.load_state(values["buffer"])
        self.report = dict(values["report"])
        if self._product is not None:
            self._product.correction = {
                k.removeprefix(_CORRECTION): v.to(device) for k, v in tensors.items() if k.startswith(_CORRECTION)
            }
            self._product.error_bound = float(values["error_bound"])
