"""The processes of a data-parallel run, as `accelerate launch` or `torchrun` started them; most often there is one."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from mcanalysis.errors import UserError

T = TypeVar("T")

_TIMEOUT = timedelta(hours=6)  # one process may evaluate a long task while the others wait


class Processes:
    """Which of the processes this is, and the few things they say to each other."""

    def __init__(self, device: str) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.index = int(os.environ.get("RANK", "0"))
        if device == "auto":
            raise UserError(
                "Expected one device for training, got --device auto, which is for analyses of runs that are there; "
                "leave it out."
            )
        if self.count == 1:
            if torch.device(device).index:  # the Trainer takes the first it sees
                raise UserError(
                    f"Expected --device {torch.device(device).type} for training, got {device}; choose the GPU with "
                    f"CUDA_VISIBLE_DEVICES={torch.device(device).index}."
                )
            self.device = device
            return
        # `timeout` reaches the process group.
        own = PartialState(cpu=device == "cpu", timeout=_TIMEOUT).device
        atexit.register(_leave)
        self.device = device if device == "cpu" else str(own)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's rows: a contiguous part, equally long in each."""
        size = len(rows) // self.count
        return rows[self.index * size : (self.index + 1) * size]

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.count == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def sum(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over processes of each tensor."""
        if self.count > 1:
            for tensor in tensors.values():
                dist.all_reduce(tensor)
        return dict(tensors)

    def on_main(self, action: Callable[[], T]) -> T:
        """What the action returns in the main process, in all; an error it raises there is raised in all."""
        if self.count == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except Exception as error:  # told to the others, who would wait for ever
                outcome[1] = error
        outcome = broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def map(self, function: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
        """The function's results for all items, in order, computed by the processes in turn.

        Where the base is sharded (FSDP) no process can run it alone: all compute everything, side by side.
        """
        if self.count == 1 or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            return [function(item) for item in items]
        mine = [(i, function(items[i])) for i in range(self.index, len(items), self.count)]
        return [result for _, result in sorted(gather_object(mine), key=lambda pair: pair[0])]


def _leave() -> None:
    """Close the process group while the interpreter is whole.

    Gloo's threads may still hold tensors of finished work; to free them during the interpreter's own end aborts the
    process now and then (pytorch pull request 179291), after all is done and written.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
