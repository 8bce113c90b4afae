"""What holds for this process and those that it starts: whether the hub may be asked, whether sums are repeatable.

Both are variables of the environment, so that workers have them from the start. Only the standard library is imported.
"""

from __future__ import annotations

import os
import sys

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
DETERMINISTIC = "MCANALYSIS_DETERMINISTIC"


def be_offline() -> None:
    """From here on no model and no data are looked for on a network."""
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    if "huggingface_hub" in sys.modules:  # which has read the variables
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        from datasets import config

        config.HF_HUB_OFFLINE = True


def be_deterministic() -> None:
    """From here on only operations are used that give the same bits each time on one machine (`settle_operations`)."""
    os.environ[DETERMINISTIC] = "1"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what PyTorch asks for


def is_deterministic() -> bool:
    """Whether that was asked for."""
    return os.environ.get(DETERMINISTIC) == "1"


def settle_operations() -> None:
    """Tell PyTorch, where it was asked for: an operation that has no repeatable form raises `RuntimeError` then."""
    if is_deterministic():
        import torch

        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
