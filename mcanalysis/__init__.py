"""mcanalysis: what lies between the minima a continually fine-tuned language model passed through.

The names below are loaded when first used, so that `import mcanalysis` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcanalysis.connectivity.attribution import attribute
    from mcanalysis.connectivity.curve_fitting import fit_curve
    from mcanalysis.connectivity.profile import Profile, profile
    from mcanalysis.errors import UserError
    from mcanalysis.evaluation.adapter_objective import adapter_objective
    from mcanalysis.models.adapter_files import load_adapter, save_adapter
    from mcanalysis.paths import Bezier, Linear, PolyChain, SegmentedBezier, Simplex
    from mcanalysis.run import Run, load_run
    from mcanalysis.training.config import RunConfig, TrainingConfig
    from mcanalysis.training.continual_trainer import ContinualTrainer, train

__version__ = "0.1.0"

_HOMES = {
    "Bezier": "paths",
    "ContinualTrainer": "training.continual_trainer",
    "Linear": "paths",
    "PolyChain": "paths",
    "Profile": "connectivity.profile",
    "Run": "run",
    "RunConfig": "training.config",
    "SegmentedBezier": "paths",
    "Simplex": "paths",
    "TrainingConfig": "training.config",
    "UserError": "errors",
    "adapter_objective": "evaluation.adapter_objective",
    "attribute": "connectivity.attribution",
    "fit_curve": "connectivity.curve_fitting",
    "load_adapter": "models.adapter_files",
    "load_run": "run",
    "profile": "connectivity.profile",
    "save_adapter": "models.adapter_files",
    "train": "training.continual_trainer",
}

__all__ = [
    "Bezier", "ContinualTrainer", "Linear", "PolyChain", "Profile", "Run", "RunConfig", "SegmentedBezier", "Simplex",
    "TrainingConfig", "UserError", "adapter_objective", "attribute", "fit_curve", "load_adapter", "load_run", "profile",
    "save_adapter", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mcanalysis' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mcanalysis.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
