"""How studies are told: tables that a person can read, and the same unrounded for `--json`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mcanalysis.cli.console import answer, say, table
from mcanalysis.cli.run_reporting import interval, number, strategies
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.studies.attribution import AttributionResult
from mcanalysis.studies.connectivity.study import ConnectivityResult
from mcanalysis.studies.connectivity.summaries import (
    cut_prompts,
    ensemble_summary,
    front_summary,
    seeds_summary,
    simplex_summary,
)
from mcanalysis.studies.curvature import CurvatureResult
from mcanalysis.studies.similarity import SimilarityResult


def connectivity(result: ConnectivityResult) -> None:
    """Per transition: barriers of old and new tasks, and what interpolation gains."""
    tests = result.barriers[result.barriers.split == "test"]
    for (strategy, learner, seed), group in tests.groupby(["strategy", "learner", "seed"], sort=False):
        rows = [
            ["transition", "path", "chord barrier, loss: old", "new", "chord dip: old", "new", "t*", "gain in S̄ [95 %]"]
        ]
        keys = ["start", "end", "path", "space"]
        for (start, end, path, space), one in group.groupby(keys, sort=False):
            new = _new_task(one)
            loss = one[one.quantity == "loss"].set_index("task")
            score = one[one.quantity == "score"].set_index("task")
            old_or_none = loss.loc["mean_old"] if "mean_old" in loss.index else None
            mean = score.loc["mean"] if "mean" in score.index else None
            rows.append(
                [
                    f"{start} → {end}",
                    f"{path} {space}",
                    "–" if old_or_none is None else number(old_or_none.chord_barrier),
                    number(loss.loc[new].chord_barrier),
                    "–" if old_or_none is None else number(old_or_none.chord_dip),
                    number(loss.loc[new].chord_dip),
                    "–" if mean is None else number(mean.t_star),
                    "–" if mean is None else interval(mean, "interpolation_gain"),
                ]
            )
        if strategy == "adapters":
            say("\nTwo adapters, on the examples given; loss in nats per target token. No t* and no gain: chosen and")
            seen = "" if set(group.path) <= {"linear"} else " The curve was fitted on these, too."
            say(f"measured on the same examples they would be positive by selection.{seen}")
        else:
            say(f"\n{strategy} / {learner} / seed {seed}, test split; loss in nats per target token;")
            say("gain = S̄(t*) − max(S̄(0), S̄(1)) with S̄ = ½(old tasks + new task) and t* chosen on the eval split")
        table(rows)
    if tests.get("few_events", pd.Series(dtype=bool)).any():
        say("* under 50 examples, or under five of them make most of the variance: no 95 % is promised")
    gains(tests)
    if "front" in result.tables:
        front(result.tables["front"])
    if "ensemble" in result.tables:
        ensembles(result.tables["ensemble"])
    if "simplex" in result.tables:
        simplexes(result.tables["simplex"])
    if tests.seed.nunique() > 1:
        over_seeds(result.tables["barriers_over_seeds"])
    if len(result.metrics):
        strategies(result.metrics)
    tables = {"barriers": result.barriers, "metrics": result.metrics, **result.tables}
    answer(tables, cut_prompts=cut_prompts(result.profiles))


def front(rows: pd.DataFrame) -> None:
    """What pairs (stability, plasticity) each kind of path offers."""
    shown = [["strategy", "learner", "path", "transitions", "hypervolume", "more than the ends", "interval above 0"]]
    for _, row in front_summary(rows).iterrows():
        numbers = [number(row.hypervolume, 3), number(row.hypervolume_gain, 3), str(row.above)]
        shown.append([row.strategy, row.learner, f"{row.path} {row.space}", str(row.transitions), *numbers])
    say("\nStability–plasticity front: hypervolume above (0, 0), mean over transitions, test split")
    say("(more points dominate more: what a path has over its ends says little by itself)")
    table(shown)


def ensembles(rows: pd.DataFrame) -> None:
    """Predictions averaged along each kind of path, against single points."""
    shown = [["strategy", "learner", "path", "predictor", "loss", "exact answers", "tokens right", "ECE", "Brier"]]
    for _, row in ensemble_summary(rows).iterrows():
        numbers = [number(row[name], 3) for name in ("loss", "accuracy", "target_accuracy", "ece", "brier")]
        shown.append([row.strategy, row.learner, f"{row.path} {row.space}", row.member, *numbers])
    say(
        "\nEnsemble: next-token probabilities averaged over points of a path, teacher-forced, ½ (old + new), test split"
    )
    table(shown)


def simplexes(rows: pd.DataFrame) -> None:
    """Where between several minima the mean score is highest."""
    for _, row in simplex_summary(rows).iterrows():
        place = ", ".join(f"{row[c]:.2f}" for c in rows.columns if c.startswith("w") and c[1:].isdigit())
        say(f"\nSimplex of {row.minima.replace(' ', ', ')}, {row.space} space ({row.strategy}, seed {row.seed}):")
        say(f"best point on eval at ({place}); on test its mean score over the tasks is {row.mean_score:.3f}, ", end="")
        say(f"that of the best minimum {row.best_corner:.3f}; worst there: {row.worst_task}, {row.worst_score:.3f}")


def over_seeds(rows: pd.DataFrame) -> None:
    """Barriers and gains, averaged over transitions, with intervals over seeds."""
    shown = [["strategy", "learner", "path", "seeds", "mean over transitions of", "mean [95 %]"]]
    for _, row in seeds_summary(rows).iterrows():
        interval_ = f"{row['mean']:+.3f}" + ("" if pd.isna(row.low) else f" [{row.low:+.3f}, {row.high:+.3f}]")
        shown.append([row.strategy, row.learner, f"{row.path} {row.space}", str(row.seeds), row.value, interval_])
    say("\nOver seeds (Student's t):")
    table(shown)


def gains(tests: pd.DataFrame) -> None:
    """For how many transitions the interval of the interpolation gain excludes 0."""
    rows: list[list[str]] = [["strategy", "learner", "path", "transitions", "gain > 0", "gain < 0", "mean gain"]]
    chosen = tests[(tests.task == "mean") & (tests.quantity == "score")].dropna(subset=["interpolation_gain"])
    for keys, one in chosen.groupby(["strategy", "learner", "path", "space"], sort=False):
        strategy, learner, path, space = keys
        up, down = (one.interpolation_gain_low > 0).sum(), (one.interpolation_gain_high < 0).sum()
        mean = f"{one.interpolation_gain.mean():+.3f}"
        rows.append([str(strategy), str(learner), f"{path} {space}", str(len(one)), str(up), str(down), mean])
    if len(rows) > 1:
        say("\nInterpolation gain: transitions whose 95 % interval lies above or below 0")
        table(rows)


def similarity(result: SimilarityResult) -> None:
    """Per step from minimum to minimum: how far in the weights, and how differently the earlier tasks are answered."""
    weights, predictions = result.weight_distance, result.prediction_similarity
    chosen = weights[(weights.space == "delta") & (weights.module == "all")]
    chosen = chosen[chosen.comparison.isin(["successive", "learners"])]
    link = ["strategy", "seed", "comparison", "start", "start_learner", "end", "end_learner"]
    told = predictions[predictions.task == "mean_old"].set_index(link)
    cka = result.cka[(result.cka.task == "mean_old")].groupby(link).cka.min()
    overlaps = result.subspace_overlap.groupby([*link, "side"]).overlap.mean()
    for (strategy, seed), of_run in chosen.groupby(["strategy", "seed"], sort=False):
        head = "from,to,‖ΔW_b − ΔW_a‖,relative,cosine,overlap: out,in,lowest CKA,churn,KL"
        rows: list[list[str]] = [[str(name) for name in head.split(",")]]
        for row in of_run.to_dict("records"):
            key = tuple(row[name] for name in link)
            names = [f"{row[end]} {row[f'{end}_learner']}" for end in ("start", "end")]
            numbers = [row["distance"], row["relative"], row["cosine"]]
            numbers += [overlaps.loc[(*key, "column")], overlaps.loc[(*key, "row")], cka.get(key, np.nan)]
            numbers += [told.churn.get(key, np.nan), told.kl.get(key, np.nan)]
            rows.append([*names, *map(number, numbers)])
        say(f"\n{strategy} / seed {seed}; overlap: mean cos² of the principal angles, mean over modules;")
        say("CKA (lowest of the layers), churn and KL (nats/token): mean over the old tasks, test split")
        table(rows)
    say("\ntables: <run>/tables/weight_distance.csv, subspace_overlap.csv, cka.csv, prediction_similarity.csv")
    names = ("weight_distance", "subspace_overlap", "cka", "prediction_similarity")
    answer({name: getattr(result, name) for name in names})


def attribution(result: AttributionResult) -> None:
    """Per run, what layers and kinds of module do to the loss of the old and of the new task when they move alone."""
    losses = result.barriers[result.barriers.quantity == "loss"]
    keys = ["strategy", "learner", "seed", "space", "start", "end"]
    for (strategy, learner, seed, space, start, end), of_run in losses.groupby(keys, sort=False):
        new = _new_task(of_run)
        rows = [["moves", "old: above chord [95 %]", "change [95 %]", f"{new}: above chord [95 %]", "change [95 %]"]]
        of_start = of_run[of_run.hold == "start"]
        for group in dict.fromkeys(of_start[of_start.grouping != "module"].group):
            cells = of_start[of_start.group == group].set_index("task")
            told = [interval(cells.loc[t], v) for t in ("mean_old", new) for v in ("above_chord", "end_change")]
            rows.append([group, *told])
        say(f"\n{strategy} / {learner} / seed {seed}, {space} space, {start} → {end}, others stay at the start;")
        say("loss (nats/token) above the group's own chord where the whole path is farthest from its, and its change")
        table(rows)
    say("\ntables: <run>/tables/attribution.csv, attribution_barriers.csv")
    answer({"attribution_barriers": result.barriers})


def closed_forms(found: pd.DataFrame) -> None:
    """Each identity with the error reached and the largest that is allowed."""
    rows = [["§", "identity", "error", "bound", ""]]
    for row in found.itertuples():
        verdict = "" if row.holds else "MISSED"
        rows.append([str(row.section), str(row.identity), f"{row.error:.1e}", f"{row.bound:.0e}", verdict])
    table(rows)
    say(f"{int(found.holds.sum())} of {len(found)} hold; errors are the largest over the seeds, § of geometry.md")
    answer({"closed_forms": found})


def coverage(found: pd.DataFrame, output_dir: str) -> pd.DataFrame:
    """Per interval and kind of population how often it holds the truth; writes tables, returns what misses a bar."""
    from mcanalysis.coverage import cells_of_others, missed_bars, summary_cells, summary_markdown
    from mcanalysis.coverage.study import FROM, missed_words

    say("\nLowest coverage of 95 % intervals over the true values, at each number of examples; then of the percentile")
    say("bootstrap from 50 on, the largest ratio of widths, and how often a barrier of three standard errors is seen")
    table(summary_cells(found))
    sizes = ", ".join(str(n) for n in sorted(set(found.n)) if n >= FROM)
    say(f"\nThe same of losses of populations that the intervals were not made with, at n = {sizes}")
    table(cells_of_others(found))
    missed = missed_bars(found)
    for row in missed.to_dict("records"):
        say(f"missed: {missed_words(row)}")
    folder = Path(output_dir)
    write_text_atomic(folder / "coverage.csv", found.to_csv(index=False))
    write_text_atomic(folder / "coverage.md", summary_markdown(found))
    say(f"\ntables: {folder}/coverage.csv, coverage.md")
    answer({"coverage": found, "missed": missed})
    return missed


def curvature(result: CurvatureResult) -> None:
    """Eigenvalues and trace at each minimum, and how well forgetting was foretold."""
    for (strategy, learner, seed), group in result.curvature.groupby(["strategy", "learner", "seed"], sort=False):
        rows = [["minimum", "loss of", "loss", "|gradient|", "largest", "smallest", "trace ± standard error"]]
        for _, row in group.iterrows():
            shown = (row.loss, row.gradient_norm, row.top_1, row.bottom_1)
            of = "old tasks" if row.task == "mean_old" else row.task
            spread = f"{number(row.trace, 1)} ± {number(row.trace_standard_error, 1)}"
            rows.append([row.minimum, of, *map(number, shown), spread])
        say(f"\n{strategy} / {learner} / seed {seed}: Hessian of the test loss (nats per target token), LoRA factors")
        table(rows)
    tests = result.correlations
    rows = [["strategy", "learner", "over", "n", "g·Δ + ½ΔᵀHΔ", "g·Δ", "½ΔᵀHΔ", "‖Δ‖"]]
    for keys, one in tests.groupby(["strategy", "learner", "seed", "over", "n"], sort=False):
        by_name = one.set_index("predictor").rho
        names = ("predicted", "first_order", "second_order", "distance")
        rows.append([str(keys[0]), str(keys[1]), str(keys[3]), str(keys[4]), *(number(by_name[n]) for n in names)])
    say("\nSpearman's ρ of what predicts the rise of old losses with the rise that was measured (not independent)")
    table(rows)
    names = ("curvature", "spectrum", "forgetting", "correlations")
    answer({name: getattr(result, name) for name in names})


def _new_task(rows: pd.DataFrame) -> str:
    """The new task is the last one named before the means."""
    names = [name for name in dict.fromkeys(rows.task) if name not in ("mean_old", "mean")]
    return names[-1]
