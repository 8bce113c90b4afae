"""How studies are told: tables that a person can read, and the same unrounded for `--json`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mcanalysis.cli.console import answer, say, table
from mcanalysis.cli.run_reporting import interval, number
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.studies.attribution import AttributionResult
from mcanalysis.studies.similarity import SimilarityResult


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


def _new_task(rows: pd.DataFrame) -> str:
    """The new task is the last one named before the means."""
    names = [name for name in dict.fromkeys(rows.task) if name not in ("mean_old", "mean")]
    return names[-1]
