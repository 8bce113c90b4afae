"""The launch that a process is part of: what `torchrun` or `accelerate launch` say in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mcanalysis.errors import UserError

JOIN_SECONDS = "MCANALYSIS_JOIN_SECONDS"
_DEFAULT_JOIN_SECONDS = 300.0  # to import torch from a file system that hundreds of processes read at once
_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK")


@dataclass(frozen=True)
class Launch:
    """Process `rank` of `count`, the `local_rank`-th on its machine; `host` is where rank 0 runs.

    `join_seconds`: how long the processes wait for each other at the start.
    """

    rank: int
    count: int
    local_rank: int
    host: str
    join_seconds: float

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> Launch:
        """What the environment says; raises `UserError` where that is incomplete or makes no sense.

        >>> told = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}
        >>> Launch.of_environment(told).count
        4
        """
        environment = os.environ if environment is None else environment
        count = _number(environment, "WORLD_SIZE", "1")
        absent = [name for name in _NEEDED if not environment.get(name)]
        if absent:
            raise UserError(
                f"Expected RANK, MASTER_ADDR and MASTER_PORT beside WORLD_SIZE={count}, got no {', '.join(absent)}; "
                "start the script with torchrun, or unset WORLD_SIZE."
            )
        rank = _number(environment, "RANK")
        if not 0 <= rank < count:
            raise UserError(f"Expected a RANK from 0 to {count - 1}, got {rank} in a launch of {count}; mend it.")
        for engine, name in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
            if environment.get(name, "false").lower() == "true":
                raise UserError(
                    f"Expected processes that each hold the whole model, got a launch with {engine}; use it for "
                    "train.py, and a plain launch for analyses."
                )
        seconds = environment.get(JOIN_SECONDS, str(_DEFAULT_JOIN_SECONDS))
        try:
            join_seconds = float(seconds)
        except ValueError:
            raise UserError(f"Expected seconds in {JOIN_SECONDS}, got '{seconds}'; give a number.") from None
        return cls(rank, count, _number(environment, "LOCAL_RANK", "0"), environment["MASTER_ADDR"], join_seconds)


def leave_launch(local_rank: int) -> None:
    """From here on this process counts as one by itself, with one GPU: what trains in it takes no part in the launch.

    Raises `UserError` where there are several GPUs, but not one for each process of this machine.
    """
    for name in _OWN:
        os.environ.pop(name, None)
    import torch

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = told.split(",") if told else [str(i) for i in range(torch.cuda.device_count())]
    if len(visible) > 1:  # with one, whoever started the processes has given each its own, or they share it
        if local_rank >= len(visible):
            raise UserError(
                f"Expected at most {len(visible)} processes on this machine, one per GPU, got more; start fewer."
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[local_rank]


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = environment.get(name) or default or ""
    try:
        return int(value)
    except ValueError:
        raise UserError(f"Expected a whole number in {name}, got '{value}'; start the script with torchrun.") from None
