"""Self-replay: before a task begins the model writes old examples itself, and rehearses those; none are kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample, collate, pad_id
from mcanalysis.models.end_tokens import end_ids
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.positions import positions_of
from mcanalysis.models.writing import most_likely, one_of_the_likeliest, write
from mcanalysis.strategies.strategy import Step, Strategy, StrategyConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelfReplayConfig(StrategyConfig):
    """Settings of self-replay; "LAMOL's code" is jojotenya/LAMOL.

    `lm_weight` (λ): weight of the likelihood of prompts (0.25, LAMOL's code). `generated_share` (γ): how many examples
    are written before a task, as a share of its train examples (0.2, the value of LAMOL's published commands; its
    code's default is 0.05). `top_k`: each token of a prompt is drawn from so many likeliest ones (20, LAMOL's code).
    """

    lm_weight: float = 0.25
    generated_share: float = 0.2
    top_k: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.lm_weight < math.inf:
            raise UserError(
                f"Expected a finite lm_weight of at least 0, got {self.lm_weight}; choose 0 not to learn prompts."
            )
        if not 0 < self.generated_share < math.inf:
            raise UserError(
                f"Expected a finite generated_share above 0, got {self.generated_share}; choose the strategy "
                "sequential to train without replay."
            )
        if self.top_k < 1:
            raise UserError(f"Expected top_k of at least 1, got {self.top_k}; choose 1 for the likeliest token.")


class SelfReplay(Strategy):
    """½(CE current + CE written) + λ·NLL of the prompts; CE current + λ·NLL of its prompts in the first task.

    LAMOL's rule, in its variant of one token that starts whatever is written ("GEN"): while the model learns to answer
    it also learns to write the prompts, current and replayed ones (NLL per token, a mean over examples). Before each
    task but the first it writes γ·n examples (n: the train examples of the new task), of whatever earlier tasks it
    recalls, and rehearses them. They are written anew before each task, and no real example is kept.

    The rule is that of LAMOL's code; the paper's text was not read. What differs: no tokens are added to the
    vocabulary, as LoRA trains no embeddings. A prompt starts with the tokenizer's start token, or its end token where
    there is none, and ends with its end token, or another special one where prompts have that in them, as those of some
    chat templates. The model then answers it as it answers any prompt, by its likeliest tokens (so does the code of
    SSR, Huang et al. 2024, arXiv 2403.01244) where LAMOL draws them. λ weighs the prompt alone, as the answer has a
    loss of its own. As many rows are replayed as there are current ones, as in `er`, where LAMOL mixes γ·n into n. A
    prompt or an answer that is empty, or does not end within the length of the longest one seen so far, is thrown away
    with its example: `report` has how many were `written` and `kept` before each task.

    A step reads prompts twice, once to answer and once to write them. Tokens are drawn on the CPU by a generator of
    their own, seeded by the task; of several processes each writes for itself, the same where they compute the same
    logits.

    >>> SelfReplay.config_class()
    SelfReplayConfig(lm_weight=0.25, generated_share=0.2, top_k=20)
    """

    name = "self_replay"
    reference = "LAMOL: Sun et al. 2020, arXiv 1909.03329"
    config_class = SelfReplayConfig
    # Shares: LAMOL's code and its published commands. Weights: 0.25 is its code's; those about it are ours.
    searched = {"lm_weight": (0.1, 0.25, 1.0), "generated_share": (0.05, 0.2)}

    def __init__(self, config: SelfReplayConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.written: list[EncodedExample] = []
        self.longest = [0, 0]  # tokens of a prompt and of an answer, over all tasks so far
        self.num_steps = 0
        self.end = -1  # the id of the token that ends a prompt, chosen when the first task begins
        self._start = 0  # the id of the one that starts it

    def begin(self, model: LoraModel, num_tasks: int) -> None:
        start = model.tokenizer.bos_token_id
        self._start = model.tokenizer.eos_token_id if start is None else start

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        self.end = self._end_of_prompts(model.tokenizer, examples)
        if task_index > 0 and examples:
            # All prompts of a tokenizer bring the start token themselves, or none does.
            front = examples[0].prompt_ids[:1] if examples[0].prompt_ids[0] == self._start else ()
            self._write(model, math.ceil(self.config.generated_share * len(examples)), front)
        self.longest[0] = max([self.longest[0], *(len(e.prompt_ids) for e in examples)])
        self.longest[1] = max([self.longest[1], *(len(e.answer_ids) for e in examples)])

    def _end_of_prompts(self, tokenizer: Any, examples: Sequence[EncodedExample]) -> int:
        """A token to end prompts with that is in none of them: the tokenizer's end, else another special one."""
        inside = {token for e in examples for token in e.prompt_ids[1:]}
        known = [tokenizer.eos_token_id, *tokenizer.all_special_ids] if self.end < 0 else [self.end]
        for token in known:
            if token not in inside:
                return token
        names = ", ".join(tokenizer.convert_ids_to_tokens(list(dict.fromkeys(known))))
        raise UserError(
            f"Expected a special token that is in no prompt, for self_replay to end those it writes, got {names} in "
            "the prompts; pass --chat-template none, or choose another strategy."
        )

    def _write(self, model: LoraModel, number: int, front: tuple[int, ...]) -> None:
        """Write examples like those of earlier tasks, whose prompts begin with `front`."""
        generator = torch.Generator().manual_seed(Random(f"self_replay/{self.seed}/{self.task_index}").getrandbits(31))
        drawn = one_of_the_likeliest(self.config.top_k, generator)
        limit_prompt, limit_answer = self.longest
        texts = write(model, [(self._start,)] * number, limit_prompt + 1 - len(front), (self.end,), drawn)
        number_of, is_table, *_ = positions_of(model.network)
        room = number_of - limit_answer if is_table and number_of else math.inf
        prompts = [front + text[:-1] for text in texts if text[-1] == self.end]
        prompts = [prompt for prompt in prompts if 0 < len(prompt) <= room]
        ends = end_ids(model.tokenizer)
        answers = write(model, prompts, limit_answer, ends, most_likely)
        self.written = [
            EncodedExample(p, a) for p, a in zip(prompts, answers, strict=True) if a[-1] in ends and len(a) > 1
        ]
        self.report.setdefault("written", []).append(number)
        self.report.setdefault("kept", []).append(len(self.written))
        if not self.written:
            logger.warning(
                "of %d examples that the model wrote before task %d none is whole: it trains without replay",
                number, self.task_index + 1,
            )  # fmt: skip

    def kept_examples(self) -> list[EncodedExample]:
        return self.written

    def draw_replay(self, number: int) -> list[EncodedExample]:
        if not self.written:
            return []
        rng = Random(f"self_replay/{self.seed}/step/{self.num_steps}")  # so that there is no random state to save
        return rng.sample(self.written, number) if number <= len(self.written) else rng.choices(self.written, k=number)

    def loss(self, step: Step) -> Tensor:
        weight = self.config.lm_weight
        rows = step.batch.examples() if weight else []
        if weight:  # prompts beside the examples, in one pass
            texts = [self._as_text(e) for e in rows]
            batch = collate([*rows, *texts], pad_id(step.model.tokenizer)).to(step.batch.input_ids.device)
            result = replace(step, batch=batch).forward()
        else:
            result = step.forward()
        answers = replace(result, nll=result.nll[: step.batch.input_ids.shape[0]])
        loss = step.current_loss(answers)
        if step.num_replay:
            loss = (loss + step.replay_loss(answers)) / 2
        if weight:
            # A mean per row: `step.share` makes the mean over all rows of it, however the batch is cut.
            per_token = result.nll[len(rows) :] / result.num_targets[len(rows) :]
            loss = loss + step.share * weight * per_token.mean()
        return loss

    def _as_text(self, example: EncodedExample) -> EncodedExample:
        """The prompt as what follows the start token, with its end; never longer than the example."""
        prompt = example.prompt_ids
        ids = (*(prompt if prompt[0] == self._start else (self._start, *prompt)), self.end)
        return EncodedExample(ids[:1], ids[1 : len(example)])

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        self.num_steps += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {
            "written": [[e.prompt_ids, e.answer_ids] for e in self.written],
            "longest": self.longest,
            "num_steps": self.num_steps,
            "end": self.end,
            "report": self.report,
        }

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.written = [EncodedExample(tuple(p), tuple(a)) for p, a in values["written"]]
        self.longest = [int(n) for n in values["longest"]]
        self.num_steps = int(values["num_steps"])
        self.end = int(values["end"])
        self.report = dict(values["report"])
