"""Comparing points by what they compute: CKA of hidden states per layer, divergences of next-token distributions.

Everything is streamed: one point is in place at a time, and of the examples only sums and one number each are kept.

The hidden state of an example is the one at the **last token of its prompt**, from which the first token of the answer
is predicted. It has seen the whole question and nothing of the answer, it is where the task's decision lies, and there
is one per example: the tokens of one answer are not independent draws, which HSIC's estimate and its error assume.
Divergences are taken over the whole vocabulary at every position that predicts a token of the reference answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.metrics.prediction_similarity import js_divergence, kl_divergence, log_probabilities
from mcanalysis.metrics.representation_similarity import CKA, SMALLEST_BATCH
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.encoding import EncodedExample, collate, cut_by_length, pad_id
from mcanalysis.models.forward import forward
from mcanalysis.models.modes import evaluating

Array = NDArray[np.float64]
Pair = tuple[str, str]
_ENTRIES = 4_000_000  # probabilities held in float64 at once


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two points on the same examples.

    `cka`: one per layer; entry i is of the output of block i+1, the last one's after the final norm where the model
    has one. `kl`, `reverse_kl`, `js`: shape (examples,), summed over each answer's tokens, in nats: KL(first‖second),
    KL(second‖first), Jensen–Shannon. `targets`: shape (examples,), tokens per answer.
    """

    cka: tuple[CKA, ...]
    kl: Array
    reverse_kl: Array
    js: Array
    targets: NDArray[np.int64]


def compare_points(
    model: AdaptedModel,
    points: Mapping[str, Mapping[str, Tensor]],
    pairs: Sequence[Pair],
    examples: Sequence[EncodedExample],
    *,
    batch_size: int = 128,
    token_budget: int = 2048,
    seed: int = 0,
    on_batch: Callable[[], object] = lambda: None,
) -> dict[Pair, Comparison]:
    """Return the comparison of each pair of named points of one model on the same examples.

    Each point is evaluated once, however many pairs it is in. CKA is unbiased; batches for it are random (by `seed`)
    and of about `batch_size` examples, all of them where there are fewer. The model runs on `token_budget` padded
    tokens at a time (at least one example). Log-probabilities are held for one such part and for the points that are
    still to be compared with a later one of `points`, so list points in the order in which they are compared.

    Raises:
        UserError: fewer than 4 examples, or a batch size below 4.
        UnknownNameError: a pair names a point that is not there.
        PointMismatchError: a point is not one of this model.
    """
    for name in (n for pair in pairs for n in pair):
        if name not in points:
            raise UnknownNameError("point to compare", name, points)
    least = SMALLEST_BATCH[True]
    if len(examples) < least or batch_size < least:
        raise UserError(
            f"Expected at least {least} examples, and in a batch, for unbiased CKA, got {len(examples)} examples in "
            f"batches of {batch_size}; use more examples."
        )
    order = [name for name in points if any(name in pair for pair in pairs)]
    place = {name: index for index, name in enumerate(order)}
    number = len(examples)
    targets = np.array([len(e.answer_ids) for e in examples])
    zeros = np.zeros(number)
    results = {pair: Comparison((), zeros.copy(), zeros.copy(), zeros.copy(), targets) for pair in pairs}
    ckas: dict[Pair, list[CKA]] = {pair: [] for pair in pairs}
    with evaluating(model.network), torch.no_grad():
        for batch in _random_batches(number, batch_size, seed):
            states: dict[str, list[Array]] = {name: [] for name in order}
            for part in _parts(batch, examples, token_budget):
                logits: dict[str, NDArray[np.float32]] = {}
                for name in order:
                    logits[name], layers = _run(model, points[name], [examples[i] for i in part])
                    states[name].append(layers)
                    for pair in pairs:
                        if max(pair, key=place.__getitem__) == name:
                            _add_divergences(results[pair], part, logits[pair[0]], logits[pair[1]])
                    for done in [n for n in logits if not _needed(n, place[name], pairs, place)]:
                        del logits[done]
                on_batch()
            all_states = {name: np.concatenate(found, axis=1) for name, found in states.items()}
            for pair, of_layers in ckas.items():
                for layer in range(len(all_states[pair[0]])):
                    if layer == len(of_layers):
                        of_layers.append(CKA())
                    of_layers[layer].update(all_states[pair[0]][layer], all_states[pair[1]][layer])
    return {pair: replace(result, cka=tuple(ckas[pair])) for pair, result in results.items()}


def num_parts(
    examples: Sequence[EncodedExample], batch_size: int = 128, token_budget: int = 2048, seed: int = 0
) -> int:
    """How often `compare_points` calls `on_batch`."""
    batches = _random_batches(len(examples), batch_size, seed)
    return sum(len(_parts(batch, examples, token_budget)) for batch in batches)


def _run(
    model: AdaptedModel, point: Mapping[str, Tensor], examples: Sequence[EncodedExample]
) -> tuple[NDArray[np.float32], Array]:
    """Logits (targets, vocabulary) and hidden states (layers, examples, width) of some examples at a point."""
    batch = collate(examples, pad_id(model.tokenizer)).to(model.device)
    with model.in_place(point) as network:
        result = forward(network, batch, hidden_states=True)
    # Counted from the end: answers end at one column, and a prompt model has columns of its own before the first.
    columns = torch.tensor([-len(e.answer_ids) - 1 for e in examples])
    rows = torch.arange(len(examples))
    picked = [h[rows.to(h.device), columns.to(h.device)].double().cpu() for h in result.hidden_states]
    return result.logits.cpu().numpy(), torch.stack(picked).numpy()


def _add_divergences(result: Comparison, part: Sequence[int], first: Any, second: Any) -> None:
    rows = np.repeat(np.asarray(part), result.targets[list(part)])
    at_once = max(1, _ENTRIES // first.shape[1])
    for start in range(0, len(first), at_once):
        piece = slice(start, start + at_once)
        p, q = log_probabilities(first[piece]), log_probabilities(second[piece])
        for total, value in (
            (result.kl, kl_divergence(p, q)),
            (result.reverse_kl, kl_divergence(q, p)),
            (result.js, js_divergence(p, q)),
        ):
            np.add.at(total, rows[piece], value)


def _needed(name: str, now: int, pairs: Sequence[Pair], place: Mapping[str, int]) -> bool:
    """Whether a point is in a pair whose other point comes after number `now`."""
    return any(name in pair and max(place[n] for n in pair) > now for pair in pairs)


def _random_batches(number: int, batch_size: int, seed: int) -> list[list[int]]:
    """Random batches of equal size (±1), as few as `batch_size` allows, none of fewer than 4."""
    order = list(range(number))
    random.Random(f"representations/{seed}").shuffle(order)
    count = max(1, min(-(-number // batch_size), number // SMALLEST_BATCH[True]))
    return [order[number * i // count : number * (i + 1) // count] for i in range(count)]


def _parts(batch: Sequence[int], examples: Sequence[EncodedExample], token_budget: int) -> list[list[int]]:
    """A batch in parts of like length that the model can take at once."""
    return [[batch[i] for i in part] for part in cut_by_length([len(examples[i]) for i in batch], token_budget)]
