"""DeepSpeed and FSDP under the Trainer: what is asked of them, and what they cannot do, refused by name.

What is trained must be whole in every process, because it is averaged, saved and measured there. DeepSpeed's ZeRO-2
shards gradients and optimiser only; ZeRO-3 would shard the adapter itself. FSDP 2 shards the base and is told to leave
the modules with trainable parameters alone; their gradients are then averaged by `TaskTrainer`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mcanalysis.errors import UserError
from mcanalysis.strategies.strategy import Strategy


def check_engine(accelerator_state: Any, strategy: Strategy, network: nn.Module) -> None:
    """Raise `UserError` for what the chosen engine cannot do; tell FSDP what to leave whole."""
    deepspeed = getattr(accelerator_state, "deepspeed_plugin", None)
    if deepspeed is not None:
        if deepspeed.zero_stage == 3:
            raise UserError(
                "Expected ZeRO stage 2 or less, got 3, which shards the adapter itself; "
                "use accelerate-deepspeed-zero2.yaml, or FSDP to shard the base."
            )
        if strategy.edits_gradient:
            raise UserError(
                f"Expected DDP or FSDP for {strategy.name}, got DeepSpeed, which shards the gradient that it projects; "
                "use accelerate-ddp.yaml."
            )
    fsdp = getattr(accelerator_state, "fsdp_plugin", None)
    if fsdp is not None:
        if fsdp.fsdp_version != 2:
            raise UserError(
                f"Expected FSDP version 2, got {fsdp.fsdp_version}; "
                "set fsdp_version: 2 in the accelerate configuration."
            )
        fsdp.ignored_modules = [
            m
            for name, m in network.named_modules()
            # All of an adapter: InfLoRA's A is not trained, and is saved and read whole none the less.
            if ".lora_" in name or any(p.requires_grad for p in m.parameters(recurse=False))
        ]
