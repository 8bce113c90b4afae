"""A point as a language model of lm-evaluation-harness: its own HFLM on the loaded base, with the point in place."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from mcanalysis.errors import MissingPackageError
from mcanalysis.evaluation.adapter_objective import attach_slot
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.lora import key_a, key_b, module_names

try:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError:  # said by `check_installed`
    Instance, HFLM = None, object


def check_installed() -> None:
    """Raise `MissingPackageError` where the extra `lm-eval` is not installed."""
    if Instance is None:
        raise MissingPackageError("lm_eval", "for tasks of lm-evaluation-harness", "lm-eval")


class PointLM(HFLM):  # type: ignore[misc,valid-type]
    """What `lm_eval.simple_evaluate(model=…)` takes: a base that is loaded once, at one point after the other.

    `model` has a slot on every module that a point adapts; `at(point)` says which point is measured, before that the
    base itself. `settings` are those of lm-eval's `HFLM`, `batch_size=1` among them. While a request is answered the
    point's factors lie unmerged in the slot, as PEFT computes them, so that at an adapter's own point results are those
    of `--model_args pretrained=BASE,peft=ADAPTER` (where α/r is a power of two to the last bit, else up to rounding);
    afterwards the slot is as it was. Raises `MissingPackageError` without lm-eval.
    """

    def __init__(self, model: AdaptedModel, **settings: Any) -> None:
        check_installed()
        network = model.base if isinstance(model, LoraModel) else model.network
        # A copy: HFLM gives the tokenizer a padding token where it has none.
        with quiet():  # that a loaded model ignores the arguments of loading
            super().__init__(pretrained=network, tokenizer=copy.deepcopy(model.tokenizer), **settings)
        self.adapted = model
        self._point: Mapping[str, Tensor] | None = None
        self._only_encodes = False

    @classmethod
    def load(
        cls,
        model: str,
        adapters: Sequence[Mapping[str, Tensor]],
        *,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
        **settings: Any,
    ) -> PointLM:
        """Load a base with room for every point between `adapters`; arguments and errors as for `adapter_objective`."""
        check_installed()
        base, tokenizer = load_base(model, dtype, device or default_device(), revision=revision)
        return cls(attach_slot(base, tokenizer, adapters, model), **settings)

    def at(self, point: Mapping[str, Tensor]) -> PointLM:
        """Answer from this point on; returns itself."""
        self._point = _without_zeros(point) if isinstance(self.adapted, LoraModel) else point
        return self

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """The tokens that `loglikelihood` reads of (prompt, continuation), before it cuts what is too long."""
        self._only_encodes = True
        try:
            return self.loglikelihood(requests(pairs), disable_tqdm=True)  # type: ignore[return-value]
        finally:
            self._only_encodes = False

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        """What both kinds of likelihood come down to."""
        if self._only_encodes:
            return [(prompt, continuation) for _, prompt, continuation in requests]
        with self._in_place():
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Texts written at the point."""
        with self._in_place():
            return super().generate_until(requests, disable_tqdm)

    def _in_place(self) -> AbstractContextManager[Any]:
        model = self.adapted
        point = model.base_point() if self._point is None else self._point
        return model.unmerged(point) if isinstance(model, LoraModel) else model.in_place(point)


def _without_zeros(point: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The point without the parts of its rank that add nothing.

    At the end of a path in ΔW these are the factors of the other end: without them the products are summed in the
    order in which they are for the adapter itself, and so equal to the last bit.
    """
    kept = dict(point)
    for module in module_names(point):
        counts = (point[key_b(module)] != 0).any(dim=0)
        if not bool(counts.all()):
            counts[0] |= not bool(counts.any())  # a slot has a rank of at least 1
            kept[key_a(module)] = point[key_a(module)][counts]
            kept[key_b(module)] = point[key_b(module)][:, counts]
    return kept


@contextmanager
def quiet() -> Iterator[None]:
    """Let lm-eval log errors alone, which would repeat at every point what it says once."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def requests(pairs: Sequence[tuple[str, str]]) -> list[Any]:
    """Requests for the likelihood of each continuation after its prompt."""
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]  # type: ignore[misc]
