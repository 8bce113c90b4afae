"""What an interrupted curve fit goes on from: one safetensors file, replaced as a whole, removed when the fit is done.

It holds the bends, the optimizer's and the generator's state, the step, and the random state of a loss that draws its
own minibatches, so that a fit that was stopped and resumed gives the same bits as one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcanalysis.connectivity.convergence import Convergence
from mcanalysis.connectivity.losses import loss_state, restore_loss
from mcanalysis.errors import UserError
from mcanalysis.store.point_files import read_tensors, write_tensors


class FitCheckpoint:
    """The state of one fit in a file; `identity` tells fits apart, so that none goes on from another's state."""

    def __init__(self, file: str | Path, identity: str) -> None:
        self.file = Path(file)
        self.identity = identity

    def save(
        self,
        step: int,
        parameters: Sequence[Tensor],
        stepper: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        generator: torch.Generator,
        loss: object,
        convergence: Convergence,
    ) -> None:
        """Write where the fit is after `step` steps."""
        tensors = {f"parameter/{i}": p for i, p in enumerate(parameters)}
        tensors["generator"] = generator.get_state()
        sums, convergence_header = convergence.state()
        tensors |= sums
        state = stepper.state_dict()
        numbers: dict[str, dict[str, Any]] = {}
        for index, of_parameter in state["state"].items():
            for name, value in of_parameter.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value
                else:
                    numbers.setdefault(str(index), {})[name] = value
        header = {
            "identity": self.identity,
            "step": step,
            "optimizer": {"numbers": numbers, "param_groups": state["param_groups"]},
            "schedule": schedule.state_dict(),
            "loss": loss_state(loss),
            "convergence": convergence_header,
        }
        write_tensors(self.file, tensors, header)

    def restore(
        self,
        parameters: Sequence[Tensor],
        stepper: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        generator: torch.Generator,
        loss: object,
        convergence: Convergence,
    ) -> int:
        """Put everything back as it was saved; returns the number of steps done, 0 where there is no file.

        Raises `UserError` for the checkpoint of another fit.
        """
        if not self.file.exists():
            return 0
        tensors, header = read_tensors(self.file)
        if header.get("identity") != self.identity:
            raise UserError(
                f"Expected the checkpoint of this fit in {self.file}, got that of another curve, seed or setting; "
                "remove it or name another file."
            )
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                parameter.copy_(tensors[f"parameter/{i}"])
        generator.set_state(tensors["generator"])
        state: dict[int, dict[str, Any]] = {int(i): dict(own) for i, own in header["optimizer"]["numbers"].items()}
        for full, tensor in tensors.items():
            if full.startswith("optimizer/"):
                _, index, name = full.split("/", 2)
                state.setdefault(int(index), {})[name] = tensor
        stepper.load_state_dict({"state": state, "param_groups": header["optimizer"]["param_groups"]})
        schedule.load_state_dict(header["schedule"])
        restore_loss(loss, header["loss"])
        convergence.restore(tensors, header.get("convergence"), int(header["step"]))
        return int(header["step"])

    def remove(self) -> None:
        """The fit is done."""
        self.file.unlink(missing_ok=True)
