"""mcanalysis: what lies between the minima a continually fine-tuned language model passed through.

The names below are loaded when first used, so that `import mcanalysis` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcanalysis.connectivity.attribution import attribute
    from mcanalysis.connectivity.certificate import Certificate, barrier_certificate
    from mcanalysis.connectivity.curve_fitting import fit_curve
    from mcanalysis.connectivity.early import early_profile
    from mcanalysis.connectivity.ensemble import ensemble_along
    from mcanalysis.connectivity.gauge import gauge_spread
    from mcanalysis.connectivity.module_objective import module_objective
    from mcanalysis.connectivity.profile import Profile, profile
    from mcanalysis.errors import UserError
    from mcanalysis.evaluation.adapter_objective import adapter_objective
    from mcanalysis.evaluation.engine_settings import EngineSettings
    from mcanalysis.evaluation.harness import lm_eval_objective
    from mcanalysis.landscape.basin_radius import basin_radius
    from mcanalysis.landscape.eigenvalues import eigenvalues
    from mcanalysis.landscape.hessian import HessianOperator
    from mcanalysis.landscape.predicted_forgetting import predicted_forgetting
    from mcanalysis.landscape.sharpness import epsilon_sharpness, expected_sharpness
    from mcanalysis.landscape.slices import Slice, random_slice
    from mcanalysis.landscape.spectral_density import spectral_density
    from mcanalysis.landscape.trace import trace
    from mcanalysis.landscape.trajectory_pca import fit_trajectory_pca
    from mcanalysis.models.adapter_files import load_adapter, save_adapter
    from mcanalysis.models.check_merge import check_merge
    from mcanalysis.models.hub_upload import push_to_hub
    from mcanalysis.params.point import snapshot
    from mcanalysis.paths import Bezier, Linear, Plane, PolyChain, SegmentedBezier, Simplex
    from mcanalysis.runs.run import Run, load_run
    from mcanalysis.studies.card import card
    from mcanalysis.studies.connectivity.values import example_values
    from mcanalysis.studies.signals.base import signals
    from mcanalysis.training.config import RunConfig, TrainingConfig
    from mcanalysis.training.continual_trainer import ContinualTrainer, train

__version__ = "0.1.0"

_HOMES = {
    "Bezier": "paths",
    "Certificate": "connectivity.certificate",
    "ContinualTrainer": "training.continual_trainer",
    "EngineSettings": "evaluation.engine_settings",
    "HessianOperator": "landscape.hessian",
    "Linear": "paths",
    "Plane": "paths",
    "PolyChain": "paths",
    "Profile": "connectivity.profile",
    "Run": "runs.run",
    "RunConfig": "training.config",
    "SegmentedBezier": "paths",
    "Simplex": "paths",
    "Slice": "landscape.slices",
    "TrainingConfig": "training.config",
    "UserError": "errors",
    "adapter_objective": "evaluation.adapter_objective",
    "attribute": "connectivity.attribution",
    "barrier_certificate": "connectivity.certificate",
    "basin_radius": "landscape.basin_radius",
    "card": "studies.card",
    "check_merge": "models.check_merge",
    "early_profile": "connectivity.early",
    "eigenvalues": "landscape.eigenvalues",
    "ensemble_along": "connectivity.ensemble",
    "epsilon_sharpness": "landscape.sharpness",
    "example_values": "studies.connectivity.values",
    "expected_sharpness": "landscape.sharpness",
    "fit_curve": "connectivity.curve_fitting",
    "fit_trajectory_pca": "landscape.trajectory_pca",
    "gauge_spread": "connectivity.gauge",
    "lm_eval_objective": "evaluation.harness",
    "load_adapter": "models.adapter_files",
    "load_run": "runs.run",
    "module_objective": "connectivity.module_objective",
    "predicted_forgetting": "landscape.predicted_forgetting",
    "profile": "connectivity.profile",
    "push_to_hub": "models.hub_upload",
    "random_slice": "landscape.slices",
    "save_adapter": "models.adapter_files",
    "signals": "studies.signals.base",
    "snapshot": "params.point",
    "spectral_density": "landscape.spectral_density",
    "trace": "landscape.trace",
    "train": "training.continual_trainer",
}

__all__ = [
    "Bezier", "Certificate", "ContinualTrainer", "EngineSettings", "HessianOperator", "Linear", "Plane",
    "PolyChain", "Profile", "Run", "RunConfig", "SegmentedBezier", "Simplex", "Slice", "TrainingConfig",
    "UserError", "adapter_objective", "attribute", "barrier_certificate", "basin_radius", "card", "check_merge",
    "early_profile", "eigenvalues", "ensemble_along", "epsilon_sharpness", "example_values", "expected_sharpness",
    "fit_curve", "fit_trajectory_pca", "gauge_spread", "lm_eval_objective", "load_adapter", "load_run",
    "module_objective", "predicted_forgetting", "profile", "push_to_hub", "random_slice", "save_adapter", "signals",
    "snapshot", "spectral_density", "trace", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mcanalysis' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mcanalysis.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
