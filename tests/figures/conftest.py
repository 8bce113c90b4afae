"""Runs that look finished and measured, made of numbers that are simple enough to be looked up again.

One task has a Chinese name, which no font of matplotlib's own can show.
"""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mcanalysis.runs.finished import FinishedRun
from mcanalysis.store.manifest import new_manifest, write_manifest

FIGURES = Path(__file__).parents[2] / "figures"
TASKS = ("立场检测", "FOMC", "20Minuten-Größe")
MINIMA = tuple(f"{k}-{task}" for k, task in enumerate(TASKS, start=1))
SETTINGS = {"ema_decay": 0.95, "consistency_weight": 1.0, "memory_size": 500}
TS = np.linspace(0, 1, 5)


def interval(name, value, half=0.02):
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def path_tables(told):
    profiles, barriers, kinds = [], [], [("linear", "factor"), ("bezier", "factor")]
    for k, (path, space) in itertools.product((1, 2), kinds):
        place = told | {"path": path, "space": space, "start": MINIMA[k - 1], "end": MINIMA[k]}
        for task, t in itertools.product((TASKS[k], "mean_old", "mean"), TS):
            score = 0.2 + 0.6 * t if task == TASKS[k] else 0.9 - 0.4 * t**2
            row = place | {"t": t, "task": task, "split": "test", "num_examples": 5, "num_targets": 9}
            profiles.append(row | interval("loss", 1 - score) | interval("score", score))
        for task, quantity in itertools.product((TASKS[k], "mean_old", "mean"), ("loss", "score")):
            gain = 0.1 * k if (task, quantity) == ("mean", "score") else np.nan
            row = place | {"task": task, "split": "test", "quantity": quantity}
            row |= interval("chord_barrier", k / 10) | interval("interpolation_gain", gain)
            barriers.append(row | interval("t_star", 0.5 if gain == gain else np.nan))
    flips = [
        told | {"path": path, "space": space, "start": MINIMA[k - 1], "end": MINIMA[k], "task": task, "role": role,
                "split": "test", "t": t, "against": against, "num_examples": 5, "lost_rate": 0.4 * t,
                "gained_rate": 0.2 * t, "lost_corrected": 0.3 * t, "gained_corrected": 0.1 * t}
        for k, (path, space), t, against in itertools.product((1, 2), kinds, TS, ("start", "end", "both"))
        for task, role in ((TASKS[k - 1], "old"), (TASKS[k], "new"))
    ]  # fmt: skip
    return {"profiles": profiles, "barriers": barriers, "flips": flips}


def landscape_tables(told):
    rows, steps = [], np.linspace(-1, 1, 3)
    tasks = ("mean_old", TASKS[2], "mean")
    anchors = (*(f"{m} fast" for m in MINIMA[1:]), "3-JOINT")
    places = [("plane", "", x, y, "") for x in steps for y in steps]
    places += [("plane", "", x, y, a) for a, (x, y) in zip(anchors, ((0, 0), (1, 0), (0.5, 0.8)), strict=True)]
    places += [("slice", d, x, 0.0, "") for d in ("0", "1", "mean") for x in steps]
    places += [("surface", "0,1", x, y, "") for x in steps for y in steps]
    for (kind, direction, x, y, anchor), (number, task) in itertools.product(places, enumerate(tasks)):
        start = MINIMA[1] if kind == "plane" else MINIMA[2]
        row = told | {"space": "factor", "kind": kind, "start": start, "end": MINIMA[2], "direction": direction}
        row |= {"x": x, "y": y, "anchor": anchor, "task": task, "split": "test", "score": 0.5 - x / 5}
        loss = 0.1 + x * x + 2 * y * y + number
        rows.append(row | interval("loss", loss) | {"num_examples": 5, "num_targets": 9, "measured": True})
    walk = [
        told | {"learner": name, "space": "factor", "start": MINIMA[1], "end": MINIMA[2], "task": MINIMA[2],
                "step": step, "x": step / 10, "y": 0.1 * (name == "slow"), "distance": 0.2}
        for name in ("fast", "slow") for step in (0, 5, 10)
    ]  # fmt: skip
    return {"landscape": rows, "trajectory": walk}


def curvature_tables(told):
    curvature = [
        told | {"minimum": m, "task": task, "num_examples": 5, "largest_residual": 0.01, "top_1": 3.0 + k,
                "bottom_1": -1.0}
        for k, m in enumerate(MINIMA) for task in ((TASKS[k], "mean_old") if k else (TASKS[k],))
    ]  # fmt: skip
    place = {"minimum": MINIMA[2], "task": TASKS[2], "num_examples": 5, "num_coordinates": 100, "width": 0.5}
    spectrum = [told | place | {"eigenvalue": x, "density": float(np.exp(-abs(x)))} for x in np.linspace(-2, 9, 12)]
    forgetting = [
        told | {"start": MINIMA[k - 1], "end": MINIMA[k], "task": task, "num_examples": 5, "predicted": 0.2 * k,
                "measured": 0.3 * k}
        for k in (1, 2) for task in (TASKS[0], "mean_old")
    ]  # fmt: skip
    of = [
        told | {"over": over, "predictor": "predicted", "rho": 0.5, "n": 3, "num_examples": 5}
        for over in ("tasks", "transitions")
    ]
    return {
        "curvature": curvature, "spectrum": spectrum, "predicted_forgetting": forgetting, "forgetting_correlations": of
    }  # fmt: skip


def similarity_tables(told):
    whose, learner = {k: told[k] for k in ("strategy", "seed")}, told["learner"]
    cka, distance = [], []
    for k, layer in itertools.product((1, 2), (1, 2)):
        link = {"comparison": "successive", "start": MINIMA[k - 1], "start_learner": learner, "end": MINIMA[k]}
        link |= whose | {"end_learner": learner}
        row = link | {"task": "mean_old", "split": "test", "layer": layer, "num_examples": 5}
        cka.append(row | interval("cka", 0.9 - layer / 10))
        for i, kind in enumerate(("q_proj", "v_proj")):
            module = {"space": "delta", "module": f"model.layers.{layer - 1}.{kind}"}
            distance.append(link | module | {"distance": k + layer + i, "cosine": 0.5})
    return {"cka": cka, "weight_distance": distance}


def other_tables(told):
    thirds = [(a / 3, b / 3, (3 - a - b) / 3) for a in range(4) for b in range(4 - a)]
    simplex = [
        told | {"space": "factor", "minima": " ".join(MINIMA), "w1": w[0], "w2": w[1], "w3": w[2], "task": task,
                "split": split, "loss": 1 - w[i], "score": w[i], "num_examples": 5}
        for w in thirds for i, task in enumerate(TASKS) for split in ("eval", "test")
    ]  # fmt: skip
    attribution = [
        told | {"space": "factor", "start": MINIMA[0], "end": MINIMA[1], "hold": hold, "layer": layer, "kind": kind,
                "task": task, "quantity": "loss", "t_farthest": 0.5, "above_chord": 0.1, "end_change": -0.2}
        for hold, layer, kind, task in itertools.product(
            ("start", "end"), ("model.layers.0", "model.layers.1", "all"), ("q_proj", "v_proj", "all"),
            ("mean_old", TASKS[1]),
        )
    ]  # fmt: skip
    finders = [
        told | {"space": "factor", "curve": curve, "gradients": gradients, "fit_seed": 0, "start": MINIMA[k],
                "end": MINIMA[k + 1], "task": TASKS[0], "chord_barrier": 0.1 * k, "success": k == 0, "threshold": 0.05,
                "mutual_information": float("nan")}
        for curve, gradients in (("linear", 0), ("bezier-1", 60), ("polychain-3-neb", 60)) for k in (0, 1)
    ]  # fmt: skip
    signals = [
        told | {"space": "factor", "start": MINIMA[k], "end": MINIMA[k + 1], "num_examples": 4, "forgetting": 0.1 * k,
                "score_forgetting": 0.2, "barrier": 0.1 - 0.1 * k, "gain": 0.0, "kl_new": k + told["seed"],
                "cka_drop": 0.1}
        for k in (0, 1)
    ]  # fmt: skip
    forks = [
        told | {"space": "factor", "task": minimum, "num_steps": 10, "after": after, "threshold": 0.05,
                **interval("chord_barrier", 0.3 - after / 50)}
        for minimum in MINIMA for after in (0, 5, 10)
    ]  # fmt: skip
    stable = [
        told | {"task": minimum, "num_steps": 10, "stable_from": float("inf"), "unstable_at": 10, "share": float("inf"),
                "threshold": 0.05}
        for minimum in MINIMA
    ]  # fmt: skip
    radii = [
        told | {"task": minimum, "direction": kind, "number": 0, "keep": 0.9, "radius": radius, "last_held": 0.5,
                "first_lost": radius if radius != 0.6 else 1.0, "score": 0.5}
        for minimum in MINIMA
        for kind, radius in (("random", float("inf")), ("worst", 0.6), ("forgetting", float("nan")))
    ]  # fmt: skip
    volume = told | {"num_minima": 3, "keep": 0.9, "num_samples": 60} | interval("volume", 0.4)
    basin = {"basin_forks": forks, "basin_stable": stable, "basin_radius": radii, "basin_volume": [volume]}
    return {"simplex": simplex, "attribution_barriers": attribution, "finders": finders, "signals": signals} | basin


def make_run(directory, strategy="sequential", seed=0, status="finished", without=(), **settings):
    """A run directory with every table of three tasks, but those `without`."""
    directory = Path(directory)
    chosen = SETTINGS | settings if strategy == "ilora" else {}
    config = {"strategy": strategy, "strategy_settings": chosen, "seed": seed, "model": "embedded"}
    manifest = new_manifest(config | {"tasks": list(TASKS)}, seed) | {"status": status}
    write_manifest(directory, manifest)
    answering = "slow" if strategy == "ilora" else "fast"
    told = {"strategy": strategy, "learner": answering, "seed": seed}
    made = {}
    for make in (path_tables, landscape_tables, curvature_tables, similarity_tables, other_tables):
        made |= {name: pd.DataFrame(rows) for name, rows in make(told).items()}
    kept = 0.9 if strategy == "sequential" else 0.2
    scores = np.where(np.tri(4, 3, -1) > 0, 0.9 - kept * (np.tri(4, 3, -2) > 0), 0.05)
    made["accuracy_matrix"] = pd.DataFrame(scores, columns=TASKS).assign(after=range(4))[["after", *TASKS]]
    if strategy == "ilora":
        made["accuracy_matrix_fast"] = made["accuracy_matrix"]
    (directory / "tables").mkdir(exist_ok=True)
    for name in set(made) - set(without):
        made[name].to_csv(directory / "tables" / f"{name}.csv", index=False)
    quality = 0.5 + 0.1 * seed + 0.001 * settings.get("memory_size", 0) + 0.05 * settings.get("ema_decay", 0)
    metrics = {"average_accuracy": quality, "forgetting": 1 - quality}
    learners = {name: metrics for name in (("fast", "slow") if strategy == "ilora" else ("fast",))}
    (directory / "tables" / "metrics.json").write_text(json.dumps(metrics | {"learners": learners}))
    return directory


@pytest.fixture
def figure_script(monkeypatch, capsys):
    """`figure_script("plane", "--run", DIR)`, or "__main__" for all: (exit code, stdout, stderr), in this process."""
    monkeypatch.syspath_prepend(str(FIGURES))

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        spec = importlib.util.spec_from_file_location("__main__", FIGURES / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        code = 0
        try:
            spec.loader.exec_module(module)
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def draw(monkeypatch):
    """`draw("plane", DIR, …)` gives the pictures of one figure file from finished runs."""
    monkeypatch.syspath_prepend(str(FIGURES))

    def run(name, *directories):
        return list(importlib.import_module(name).draw([FinishedRun(d) for d in directories]))

    return run


@pytest.fixture
def made_run():
    """`made_run(DIR, "ilora", seed=1, without=["cka"], ema_decay=0.5)` makes a run and returns its directory."""
    return make_run


@pytest.fixture
def runs(tmp_path):
    """Three strategies, and I-LoRA with two other settings."""
    made = [make_run(tmp_path / "runs" / name, name) for name in ("sequential", "er", "ilora")]
    for seed in (0, 1):
        for name, value in (("ema_decay", 0.5), ("memory_size", 20)):
            make_run(tmp_path / f"runs/ablations/{name}-{seed}", "ilora", seed, "finished", (), **{name: value})
    make_run(tmp_path / "runs/ablations/base-1", "ilora", 1)
    return [*made, *sorted((tmp_path / "runs/ablations").iterdir())]
