"""The shapes that the docstrings of params, paths, metrics, connectivity and landscape promise, checked in all tests.

`SHAPES` is the table; `watch`, called by conftest.py, has its functions wrapped as their modules are imported: each
call from outside is checked, and the first call that it makes itself of each other function; to check all of them takes
a fifth of the tests' time. A check follows the call: what a function refuses is its own affair, what it accepts and
returns has to fit. Keys are Python expressions of the arguments and `returns`; None fits all. Within one call a name
means one size (`n`) or several axes (`*b`). Anything has a shape here: lists that of their array, a point its names and
their shapes, k points alike (k, *point). Mappings of other things have none.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import math  # noqa: F401 (in the table)
import sys
import threading
import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from beartype.door import is_bearable
from jaxtyping import AbstractArray, Bool, Float32, Float64, Int64, Shaped, jaxtyped


class Structure(NamedTuple):
    """What jaxtyping looks at: a shape, here one whose axes may be names of tensors."""

    shape: tuple
    dtype: str = "float64"


def shaped(value: Any) -> Any:
    """Return what has the shape of a value: itself, an array, or the structure of one or several points."""
    if value is None or hasattr(value, "dtype"):
        return value
    if isinstance(value, Mapping):
        return Structure(tuple((name, tuple(value[name].shape)) for name in sorted(value)))
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Mapping) for one in value):
        kinds = {shaped(one).shape for one in value}
        return Structure((len(value), *kinds.pop())) if len(kinds) == 1 else value  # points not alike have no shape
    return np.asarray(value)


def ranks(point: Mapping[str, Any]) -> dict[str, int]:
    """Return the rank of each LoRA module, none of a plain point; an error where A and B do not fit."""
    found = {name.removesuffix(".lora_A.weight"): len(A) for name, A in point.items() if name.endswith("lora_A.weight")}
    for module, rank in found.items():
        if point[f"{module}.lora_B.weight"].shape[1] != rank:
            raise AssertionError(f"The ranks of A and B differ in {module}: {shaped(point).shape}.")
    return found


def sides(point: Mapping[str, Any]) -> dict[str, Structure]:
    """Return the shape (out, in) of the ΔW of each LoRA module."""
    return {
        module: Structure((len(point[f"{module}.lora_B.weight"]), point[f"{module}.lora_A.weight"].shape[1]))
        for module in ranks(point)
    }


def size(dims: str) -> Any:
    """Any numbers, or points, of a shape."""
    return Shaped[Any, dims]


def f64(dims: str) -> Any:
    """An array or a tensor of float64."""
    return Float64[Any, dims]


def i64(dims: str) -> Any:
    """An array or a tensor of int64."""
    return Int64[Any, dims]


def interval(dims: str) -> Any:
    """An `Interval`."""
    return tuple[f64(dims), f64(dims), Bool[Any, dims]]


POINT = size("*p")
POINTS = size("k *p")
PAIR = tuple[float, float]
TRIPLE = tuple[float, float, float]

curves = {"ts": size("n"), "values": size("*b n")}
matrix = {"np.transpose(accuracy_matrix)": size("T T+1")}
two = {"a": POINT, "b": POINT}
coordinates = {"dict(zip(self.coordinates, map(self.point.get, self.coordinates)))": POINT}
number_k = {"range(len(points))": size("k")}

SHAPES: dict[str, dict[str, Any]] = {
    # params
    "params.point.check_compatible": two,
    "params.point.combine": {"points": POINTS, "weights": size("k"), "returns": POINT},
    "params.point.interpolate": {**two, "returns": POINT},
    "params.point.subtract": {**two, "returns": POINT},
    "params.point.as_double": {"point": POINT, "returns": POINT},
    "params.point.dot": {**two, "returns": float},
    "params.point.distance": {**two, "returns": float},
    "params.point.norm": {"returns": float},
    "params.point.flatten": {"returns": size("num_coordinates")},
    "params.point.unflatten": {"vector": size("num_coordinates"), "like": POINT, "returns": POINT},
    "params.point.random_like": {"point": POINT, "returns": POINT},
    "params.directions.random_direction": {"point": POINT, "returns": POINT},
    "params.directions.random_delta_direction": {"sides(point)": size("*d"), "sides(returns)": size("*d")},
    "params.ema.ema_update_": {"slow": POINT, "fast": POINT},
    "params.gradient_subspace.GradientSubspace.__init__": {"self.basis": Float32[Any, "width k"]},
    "params.gradient_subspace.GradientSubspace.leading": {
        "self.basis": size("width k"),
        "covariance": size("width width"),
        "range(number)": size("number"),
        "returns": Float32[Any, "number width"],
    },
    "params.gradient_subspace.GradientSubspace.projected": {
        "self.basis": size("width k"),
        "rows": size("number width"),
        "returns": size("number width"),
    },
    "params.lora.base_point": {"point": POINT, "returns": POINT},
    "params.lora.delta_weights": {"sides(point)": size("*d"), "returns": size("*d")},
    "params.lora.delta_norm": {"returns": float},
    "params.lora.delta_dot": {"returns": float},
    "params.lora.delta_distance": {"returns": float},
    "params.lora.factor_delta_deviation": {**two, "ts": size("n"), "returns": f64("n")},
    "params.lora.share_modules": {**number_k, "[sides(one) for one in returns]": size("k *d")},
    "params.low_rank.concatenate": {**number_k, "weights": size("k"), "sides(returns)": size("*d")},
    "params.low_rank.truncate": {
        "sides(point)": size("*d"),
        "sides(returns[0])": size("*d"),
        "returns[1]": float,
        "max(ranks(returns[0]).values(), default=0) <= rank": Literal[True],
    },
    "params.low_rank.balance": {"point": POINT, "returns": POINT},
    "params.low_rank.compress": {**number_k, "[sides(one) for one in returns]": size("k *d")},
    "params.merging.average": {"sides(returns)": size("*d")},
    "params.merging.task_arithmetic": {"sides(returns)": size("*d")},
    "params.merging.ties": {"sides(returns)": size("*d")},
    "params.merging.magmax": {"sides(returns)": size("*d")},
    "params.merging.dare": {"sides(returns)": size("*d")},
    "params.gauge.random_gauge": {"point": POINT, "returns": POINT},
    "params.gauge.gauge_change": {"returns": float},
    "params.merging.dense_factors": {"delta": size("out in"), "sides(returns)[module]": size("out in")},
    "params.merging.with_one_rank": {"sides(point)": size("*d"), "sides(returns)": size("*d")},
    "params.merging.orthonormal_rows": {"A": size("r in"), "returns": size("r in")},
    "params.low_rank.factored_svd": {
        "B": size("out r"),
        "A": size("r in"),
        "returns[0]": f64("out k"),
        "returns[1]": f64("k"),
        "returns[2]": f64("k in"),
    },
    "params.projected_sum.projected_sum": {
        "sides(total)": size("*d"),
        "sides(point)": size("*d"),
        "sides(returns)": size("*d"),
    },
    "params.subspace_overlap.subspace_overlap": {
        "all(len(one.angles) == min(one.rank_a, one.rank_b) for one in returns.values())": Literal[True],
    },
    "params.weight_distance.weight_distance": {"returns": tuple[float, float, float, float, float]},
    "params.spaces.base.Space.embed": {**number_k, "returns": POINTS},
    "params.spaces.base.Space.chord_lengths": {"anchors": POINTS, "weights": f64("n k"), "returns": f64("n-1")},
    "params.spaces.base.Space.landmarks": {"range(len(minima))": size("k"), "range(len(returns))": size("k")},
    "params.spaces.base.Space.place": {"point": POINT, "origin": POINT, "returns": POINT},
    "params.spaces.delta.DeltaSpace.place": {"point": POINT, "returns": POINT},
    "params.spaces.aligned.AlignedSpace.place": {"sides(returns)": size("*d")},
    "params.spaces.base.Space.inner_products": {
        "range(len(points))": size("n"),
        "range(len(others))": size("m"),
        "returns": f64("n m"),
    },
    "params.spaces.base.Space.distance": {"range(len(anchors))": size("k"), "weights": size("k"), "returns": float},
    "params.spaces.base.Space.combine": {"points": POINTS, "weights": size("k"), "returns": POINT},
    "params.spaces.delta.DeltaSpace.combine": {**number_k, "weights": size("k"), "sides(returns)": size("*d")},
    # paths
    "paths.base.Path.weights": {"range(len(self.anchors))": size("k"), "returns": f64("k")},
    "paths.base.Path.weight_derivatives": {"range(len(self.anchors))": size("k"), "returns": f64("k")},
    "paths.base.Path.__call__": {"self.anchors[0]": POINT, "returns": POINT},
    "paths.base.Path.derivative": {"self.anchors[0]": POINT, "returns": POINT},
    "paths.base.Path.arc_lengths": {"ts": size("n"), "returns": f64("n")},
    "paths.base.Path.length": {"returns": float},
    "paths.base.Curve.with_bends": {"bends": POINTS, "self.bends": POINTS, "returns.bends": POINTS},
    "paths.base.straight_bends": {"start": POINT, "end": POINT, "returns": POINTS},
    "paths.bezier.bernstein": {"range(degree + 1)": size("k"), "returns": f64("k")},
    "paths.bezier.bernstein_derivatives": {"range(degree + 1)": size("k"), "returns": f64("k")},
    "paths.simplex.Simplex.__call__": {"weights": size("k"), "self.anchors": POINTS, "returns": POINT},
    "paths.simplex.Simplex.grid": {
        "self.anchors": POINTS,
        "range(math.comb(num + len(self.anchors) - 2, len(self.anchors) - 1))": size("n"),
        "returns": f64("n k"),
    },
    "paths.plane.Plane.__init__": {"range(len(self.anchors))": size("3"), "self.anchor_coordinates": f64("3 2")},
    "paths.plane.Plane.weights": {"returns": f64("3")},
    "paths.plane.Plane.project": {"returns": TRIPLE},
    # metrics
    "metrics.barriers.chord_barrier": {**curves, "returns": f64("*b")},
    "metrics.barriers.mean_barrier": {**curves, "returns": f64("*b")},
    "metrics.barriers.max_barrier": {**curves, "returns": f64("*b")},
    "metrics.barriers.chord_dip": {**curves, "returns": f64("*b")},
    "metrics.barriers.above_chord": {**curves, "returns": f64("*b n 1")},
    "metrics.barriers.above_mean": {**curves, "returns": f64("*b n 1")},
    "metrics.barriers.above_ends": {**curves, "returns": f64("*b n 2")},
    "metrics.barriers.barrier_interval": {"ts": size("n"), "estimate.point": size("n"), "returns": interval("")},
    "metrics.barriers.gain_interval": {"ts": size("n"), "estimate.point": size("n"), "returns": interval("")},
    "metrics.barriers.balanced_score": {"old": size("tasks *b"), "new": size("*b"), "returns": f64("*b")},
    "metrics.barriers.t_star": {"ts": size("n"), "scores": size("n"), "returns": float},
    "metrics.barriers.interpolation_gain": {"ts": size("n"), "s_test": size("*b n"), "returns": f64("*b")},
    "metrics.barriers.t_star_interval": {"ts": size("n"), "estimate.point": size("n"), "returns": PAIR},
    "metrics.bootstrap.Sample.mean": {
        "self.values": size("*points examples"),
        "self.denominators": size("examples"),
        "returns": f64("*points"),
    },
    "metrics.bootstrap.resampled_means": {
        "values": size("*points examples"),
        "denominators": size("examples"),
        "range(num_resamples)": size("r"),
        "returns": f64("r *points"),
    },
    "metrics.bootstrap.percentile_interval": {"samples": size("r *b"), "returns": tuple[f64("*b"), f64("*b")]},
    "metrics.bootstrap.bootstrap_interval": {"returns": tuple[f64("*b"), f64("*b")]},
    "metrics.calibration.reliability_bins": {
        "confidences": size("n"),
        "correct": size("n"),
        "range(num_bins)": size("m"),
        "returns": tuple[i64("m"), f64("m"), f64("m")],
    },
    "metrics.calibration.expected_calibration_error": {
        "confidences": size("n"),
        "correct": size("n"),
        "returns": float,
    },
    "metrics.calibration.brier_scores": {"probabilities": size("n classes"), "labels": size("n"), "returns": f64("n")},
    "metrics.clusters.clusters": {"distances": size("k k"), "returns": tuple[i64("k"), i64("k")]},
    "metrics.continual.average_accuracy": {**matrix, "returns": float},
    "metrics.continual.average_anytime_accuracy": {**matrix, "returns": float},
    "metrics.continual.backward_transfer": {**matrix, "returns": float},
    "metrics.continual.forward_transfer": {**matrix, "returns": float},
    "metrics.continual.forgetting": {**matrix, "returns": float},
    "metrics.continual.learning_accuracy": {**matrix, "returns": float},
    "metrics.continual.stability": {**matrix, "returns": float},
    "metrics.continual.stability_skipped": {**matrix, "returns": int},
    "metrics.continual.intransigence": {**matrix, "reference": size("T"), "returns": float},
    "metrics.continual.relative_gain": {**matrix, "reference": size("T"), "returns": float},
    "metrics.continual.with_task_identity": {**matrix, "returns": f64("_ T")},
    "metrics.continual.continual_metrics": {**matrix, "reference": size("T"), "returns": dict[str, float | int | None]},
    "metrics.clustered_ranks.clustered_ratio": {name: size("n") for name in ("part", "whole", "runs")},
    "metrics.clustered_ranks.clustered_spearman": {name: size("n") for name in ("x", "y", "runs", "strata")},
    "metrics.clustered_ranks.leave_one_run_out": {
        "signals": size("n k"),
        "outcome": size("n"),
        "runs": size("n"),
        "returns[0]": f64("n"),
        "returns[1]": f64("n"),
    },
    "metrics.comparisons.crossed_mean": {
        "values": size("*b seeds orders"),
        "returns": tuple[f64("*b"), f64("*b"), f64("*b")],
    },
    "metrics.comparisons.holm": {"p_values": size("n"), "returns": f64("n")},
    "metrics.comparisons.rank_sets": {
        "mean": size("k k"),
        "error": size("k k"),
        "degrees": size("k k"),
        "returns": tuple[i64("k"), i64("k")],
    },
    "metrics.comparisons.mean_ranks": {"scores": size("k runs"), "returns": f64("k")},
    "metrics.flips.corrected_share": {"returns": tuple[f64("*b"), f64("*b")]},
    "metrics.flips.mcnemar": {"lost": size("*b"), "gained": size("*b"), "returns": f64("*b")},
    "metrics.format_share.score_change": {
        "parsable": size("*b"),
        "skill": size("*b"),
        "parsable_before": size("*b"),
        "skill_before": size("*b"),
        "returns.by_format": f64("*b"),
        "returns.by_skill": f64("*b"),
    },
    "metrics.front.non_dominated": {"stability": size("n"), "plasticity": size("n"), "returns": Bool[Any, "n"]},
    "metrics.front.hypervolume": {"stability": size("*b n"), "plasticity": size("*b n"), "returns": f64("*b")},
    "metrics.front.hypervolume_of_three": {
        "stability": size("*b n"),
        "plasticity": size("*b n"),
        "general": size("*b n"),
        "returns": f64("*b"),
    },
    "metrics.front.hypervolume_intervals": {
        "stability.point": size("n"),
        "plasticity.point": size("n"),
        "None if general is None else general.point": size("n"),
        "returns": tuple[interval(""), interval("")],
    },
    "metrics.intervals.Estimate.__init__": {"self.point": f64("points"), "self.influence": f64("examples points")},
    "metrics.intervals.weighted": {
        "[one.point for _, one in parts]": size("tasks points"),
        "returns.point": f64("points"),
    },
    "metrics.intervals.mean_interval": {"estimate.point": size("points"), "returns": interval("points")},
    "metrics.intervals.paired_difference_interval": {
        "a": size("examples"),
        "b": size("examples"),
        "denominators": size("examples"),
        "returns": TRIPLE,
    },
    "metrics.intervals.half_width": {"estimate.point": size("points"), "returns": f64("points")},
    "metrics.intervals.contrast_intervals": {"contrasts(estimate.point)": size("k"), "returns": interval("k")},
    "metrics.intervals.maximum_interval": {"returns": interval("")},
    "metrics.intervals.argmax_interval": {"returns": tuple[int, int]},
    "metrics.intervals.raised_interval": {
        "[one.point for one in estimates]": size("curves n"),
        "returns": interval(""),
    },
    "metrics.retention.loss_retention": {"loss": size("*b"), "returns": f64("*b")},
    "metrics.retention.score_retention": {"score": size("*b"), "returns": f64("*b")},
    "metrics.retention.retention_estimate": {"estimate.point[:-1]": size("n"), "returns.point": f64("n")},
    "metrics.retention.mean_retention": {"[one.point for one in estimates] or None": size("tasks n")},
    "metrics.retention.retention_interval": {"estimate.point": size("n"), "returns": interval("n")},
    "metrics.over_seeds.student_interval": {"values": size("n"), "returns": TRIPLE},
    "metrics.prediction_similarity.answers_differ": {"range(len(a))": size("n"), "returns": f64("n")},
    "metrics.prediction_similarity.churn": {"returns": float},
    "metrics.prediction_similarity.log_probabilities": {"logits": size("*b classes"), "returns": f64("*b classes")},
    "metrics.prediction_similarity.kl_divergence": {
        "log_p": size("*b classes"),
        "log_q": size("*b classes"),
        "returns": f64("*b"),
    },
    "metrics.prediction_similarity.symmetric_kl": {
        "log_p": size("*b classes"),
        "log_q": size("*b classes"),
        "returns": f64("*b"),
    },
    "metrics.prediction_similarity.js_divergence": {
        "log_p": size("*b classes"),
        "log_q": size("*b classes"),
        "returns": f64("*b"),
    },
    "metrics.representation_similarity.CKA.update": {"x": size("examples ..."), "y": size("examples ...")},
    "metrics.representation_similarity.CKA.interval": {"returns": PAIR},
    "metrics.representation_similarity.linear_cka": {"x": size("n ..."), "y": size("n ..."), "returns": float},
    "metrics.representation_similarity.linear_hsic": {"x": size("n ..."), "y": size("n ..."), "returns": float},
    # connectivity
    "connectivity.profile.Profile.__init__": {
        "self.ts": f64("n"),
        "self.losses": f64("n"),
        "self.nll": f64("n examples"),
        "self.targets": size("examples"),
        "self.scores": f64("n"),
        "self.example_scores": f64("n examples"),
        "self.arc_lengths": f64("n"),
    },
    "connectivity.profile.Profile.values": {"self.ts": size("n"), "returns": f64("n")},
    "connectivity.profile.grid": {"range(num_points)": size("n"), "returns": f64("n")},
    "connectivity.profile.grid_beyond": {"returns": f64("n")},
    "connectivity.profile.profile": {"ts": size("n"), "returns.ts": size("n")},
    "connectivity.profile.Profile.chord_barrier": {"returns": float},
    "connectivity.profile.Profile.chord_barrier_interval": {"returns": PAIR},
    "connectivity.early.EarlyProfile.__init__": {
        "self.profile.ts": size("n"),
        "self.half_widths": f64("n"),
        "self.examples": i64("examples"),
    },
    "connectivity.objective_result.examples_of": {
        "returns.nll": size("n"),
        "returns.targets": size("n"),
        "returns.scores if np.size(returns.scores) else None": size("n"),
    },
    "connectivity.module_objective.ModuleMeasurement.__init__": {
        "self.nll": f64("n"),
        "self.targets": f64("n"),
        "self.loss": size(""),
        "self.scores": f64("n"),
        "self.score": float,
    },
    "connectivity.ensemble.Predictions.__init__": {
        "self.nll": f64("n"),
        "self.confidence": f64("n"),
        "self.correct": Bool[Any, "n"],
        "self.brier": f64("n"),
        "self.rows": i64("n"),
        "self.entropy": f64("n"),
    },
    "connectivity.ensemble.Ensemble.__init__": {
        "self.ts": f64("k"),
        "range(len(self.members))": size("k"),
        "[one.nll for one in self.members]": size("k n"),
        "self.together.nll": size("n"),
    },
    "connectivity.ensemble.ensemble_along": {"ts": size("k"), "returns.ts": size("k")},
    "connectivity.finders.neb.forces": {
        "places": size("places p"),
        "values": size("places"),
        "slopes": size("bends p"),
        "returns": size("bends p"),
    },
    "connectivity.finders.neb.tangent": {"behind": size("p"), "ahead": size("p"), "returns": size("p")},
    "connectivity.attribution.barrier_values": {
        "ts": size("n"),
        "values": size("*b n"),
        "np.stack(list(returns.values()), axis=-1)": size("*b columns"),
    },
    "connectivity.attribution.change": {"values": size("*b n"), "returns": size("*b n")},
    "connectivity.attribution.above_chord": {**curves, "returns": size("*b n")},
    "connectivity.attribution.farthest": {"ts": size("n"), "values": size("n"), "returns": int},
    "connectivity.curve_fitting.fit_curve": {
        "curve.anchors": POINTS,
        "returns.anchors": POINTS,
        "range(num_steps if finder == 'mean' else len(returns.history))": size("steps"),
        "returns.history": size("steps"),
    },
    "connectivity.connected_volume.simplex_samples": {
        "range(num_samples)": size("n"),
        "range(num_corners)": size("k"),
        "returns": f64("n k"),
    },
    "connectivity.connected_volume.connected_volume": {"values": size("n")},
    "connectivity.simplex_grid.simplex_weights": {"range(len(simplex.anchors))": size("k"), "returns": size("n k")},
    "connectivity.simplex_grid.simplex_profile": {"simplex.anchors": POINTS, "weights": size("n k")},
    # landscape
    "landscape.eigenvalues.Eigenvalues.__init__": {
        "self.values": f64("k"),
        "self.vectors": f64("n k"),
        "self.residuals": f64("k"),
    },
    "landscape.eigenvalues.eigenvalues": {"operator": size("n n"), "returns.vectors": size("n k")},
    "landscape.hessian.HessianOperator.gradient": {**coordinates, "returns": POINT},
    "landscape.hessian.HessianOperator.product": {**coordinates, "direction": POINT, "returns": POINT},
    "landscape.hessian.HessianOperator.as_point": {"self": size("n n"), "vector": size("n"), "returns": POINT},
    "landscape.grid.surrounding_axes": {"places": size("n 2")},
    "landscape.predicted_forgetting.same_ranks": {"returns[0]": POINT, "returns[1]": POINT},
    "landscape.sharpness.expected_sharpness": {
        "range(num_samples)": size("n"),
        "returns.samples": f64("n"),
        "returns.value": float,
    },
    "landscape.slices.Slice.__call__": {"range(self.num_directions)": size("k"), "steps": size("k")},
    "landscape.slices.filter_direction": {"point": POINT, "returns": POINT},
    "landscape.spectral_density.SpectralDensity.__init__": {"self.nodes": f64("m"), "self.weights": f64("m")},
    "landscape.spectral_density.SpectralDensity.density": {"at": size("k"), "returns": f64("k")},
    "landscape.spectral_density.SpectralDensity.grid": {"range(num)": size("n"), "returns": f64("n")},
    "landscape.trace.Trace.__init__": {"self.value": float, "self.standard_error": float},
    "landscape.trajectory_pca.TrajectoryPCA.__init__": {
        "self.coordinates": f64("n k"),
        "self.explained_variance_ratio": f64("k"),
        "self.directions": POINTS,
    },
    "landscape.trajectory_pca.TrajectoryPCA.project": {
        "self.explained_variance_ratio": size("k"),
        "returns": size("k+1"),
    },
    "landscape.trajectory_pca.fit_trajectory_pca": {
        "range(len(points))": size("n"),
        "range(num_components)": size("k"),
        "returns.coordinates": size("n k"),
    },
}


class Open(threading.local):
    """The checked calls a thread is in: how deep, and which functions were checked since the outermost began."""

    def __init__(self):
        self.depth, self.seen = 0, set()


OPEN = Open()


def checked(function: types.FunctionType, stated: Mapping[str, Any]) -> types.FunctionType:
    """Return the function with a check after each call that returns: AssertionError unless what is stated holds."""
    signature, scope, now = inspect.signature(function), globals(), OPEN
    values_of = compile(f"({', '.join(stated)},)", "shapes.py", "eval")
    has_shape = [inspect.isclass(hint) and issubclass(hint, AbstractArray) for hint in stated.values()]
    all_of = tuple[tuple(hint | None for hint in stated.values())]  # one check of a tuple is the quickest

    def verify(args, kwargs, returns):
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        found = eval(values_of, scope, {**given.arguments, "returns": returns})
        values = tuple(shaped(value) if shape else value for value, shape in zip(found, has_shape, strict=True))
        with jaxtyped("context"):
            if is_bearable(values, all_of):
                return
        with jaxtyped("context"):
            for text, hint, value in zip(stated, all_of.__args__, values, strict=True):
                if not is_bearable(value, hint):
                    shapes = {key: getattr(one, "shape", one) for key, one in zip(stated, values, strict=True)}
                    wrong = f"expected {text} to be {stated[text]}, got {value!r}"
                    raise AssertionError(f"{function.__qualname__}: {wrong}; shapes: {shapes}.")

    def call(*args, **kwargs):
        if now.depth == 0:
            now.seen = {function}
        now.depth += 1
        try:
            returns = function(*args, **kwargs)
        finally:
            now.depth -= 1
        if now.depth == 0 or (now.depth == 1 and function not in now.seen):
            now.seen.add(function)
            verify(args, kwargs, returns)
        return returns

    # doctest runs the examples of functions whose globals are those of the module it looks through.
    mine = types.FunctionType(call.__code__, function.__globals__, function.__name__, None, call.__closure__)
    return functools.update_wrapper(mine, function)


def check_calls(module: types.ModuleType) -> None:
    """Put checked functions in the place of a module's own, wherever it, its classes or its tables hold them.

    A method without an entry has to keep the word of the nearest one that it overrides.
    """
    home = f"{module.__name__.removeprefix('mcanalysis.')}."
    replaced = {
        value: checked(value, SHAPES[home + name])
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__ and home + name in SHAPES
    }
    for holder in [vars(module), *(one for name, one in vars(module).items() if type(one) is dict)]:
        holder.update(
            {k: replaced[v] for k, v in holder.items() if isinstance(v, types.FunctionType) and v in replaced}
        )
    for cls in [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]:
        for name, method in list(vars(cls).items()):
            keys = [f"{base.__module__.removeprefix('mcanalysis.')}.{base.__qualname__}.{name}" for base in cls.__mro__]
            key = next((key for key in keys if key in SHAPES), None)
            if key and isinstance(method, types.FunctionType):
                setattr(cls, name, checked(method, SHAPES[key]))


class Finder(importlib.abc.MetaPathFinder):
    """Finds the package's modules as ever, and has their calls checked once they are imported."""

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name.startswith("mcanalysis.") else None
        if spec and spec.loader:
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (run(module), check_calls(module))
        return spec


def watch() -> None:
    """Check the calls of all modules of the package that are imported from now on."""
    sys.meta_path.insert(0, Finder())
