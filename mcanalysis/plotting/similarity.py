"""Every figure of how alike a run's minima are, with its caption."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from mcanalysis.plotting.output_similarity import plot_cka, plot_predictions
from mcanalysis.plotting.similarity_panels import learners
from mcanalysis.plotting.style import strategy_name
from mcanalysis.plotting.weight_similarity import MOST_KINDS, plot_principal_angles, plot_weight_distances


def plot_similarity(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Draw every figure of one run, by the stem of its file: `similarity_<what>_<learner>`.

    `tables`: `cka`, `prediction_similarity`, `weight_distance` and `subspace_overlap` of one strategy and seed. Raises
    `UserError` for missing columns and for tables of several runs.
    """
    kinds = {
        "cka": (plot_cka, "cka"),
        "predictions": (plot_predictions, "prediction_similarity"),
        "distances": (plot_weight_distances, "weight_distance"),
        "angles": (plot_principal_angles, "subspace_overlap"),
    }
    return {
        f"similarity_{what}_{learner}": draw(tables[table], learner)
        for what, (draw, table) in kinds.items()
        for learner in learners(tables[table])
    }


def captions(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """What each figure of `plot_similarity` shows, in words."""
    cka = tables["cka"]
    first = cka.iloc[0]
    number = int(cka[cka.task == first.task].num_examples.iloc[0])
    run = f"{strategy_name(first.strategy)}, seed {first.seed}"
    texts = {
        "cka": f"Linear CKA (unbiased HSIC) of the hidden states at the last token of the prompt, per layer ({run}, "
        "LEARNER adapter). Mean over the tasks learned before the minimum named, "
        f"{number} test examples of each; bars: 95 % intervals over examples (jackknife). The last layer is read after "
        "the final norm where the model has one. 1: alike up to rotation and scale; about 0: unrelated.",
        "predictions": f"Share of examples with another greedy answer (churn), and KL divergence of the next-token "
        f"distributions at the reference answer's tokens ({run}, LEARNER adapter), {number} test examples per task. "
        "Mean over the tasks learned before the minimum named, with 95 % intervals over examples. KL is "
        "from the earlier point (the base, the minimum before, the fast adapter) to the later.",
        "distances": f"Frobenius norm of ΔW_b − ΔW_a and cosine of ΔW_a and ΔW_b over all adapted modules, for all "
        f"pairs of minima ({run}, LEARNER adapter). Distances in the other spaces and per module are in the table.",
        "angles": f"Principal angles between the column spaces (upper) and row spaces (lower) of successive minima's "
        f"ΔW, per adapted module ({run}, LEARNER adapter). Marker: mean; bar: smallest to largest. 0°: a shared "
        f"direction; 90°: orthogonal. At most {MOST_KINDS} kinds of modules are shown.",
    }
    return {
        f"similarity_{what}_{learner}": text.replace("LEARNER", learner)
        for what, text in texts.items()
        for learner in learners(cka)
    }
