"""The bars that every interval must meet, by simulation; and that the table says what was simulated."""

import numpy as np
import pytest

from mcanalysis.coverage import (
    cells_of_others,
    coverage_table,
    missed_bars,
    summary_cells,
    summary_markdown,
)
from mcanalysis.coverage.populations import OTHERS, TS, losses, of_size, others, scores
from mcanalysis.coverage.trials import cases

KNOWN = {
    "width": {
        *(("max_barrier, score", kind) for kind in ("smooth", "tied")),
        *(("chord_dip, score", kind) for kind in ("smooth", "tied", "rare")),
        ("chord_barrier, mean of tasks", "tied"),
        ("hypervolume", "rare"),
        ("above_chord, loss", "Pareto, 41 points"),
    },
    "coverage": {
        (interval, f"Pareto, {number} points")
        for interval in ("mean loss", "end_change, loss", "above_chord, loss")
        for number in (5, 41)
    },
}
"""(Interval, kind) that misses a bar, by its first word; docs/coverage.md says why, cell by cell.

The two `above_chord` of Pareto's coverage are 0.90 there and 0.894 would miss: rounding of another machine may do that.
"""
LEAST_OF_PARETO = 0.8


@pytest.mark.parametrize("make", [losses, scores])
@pytest.mark.parametrize("kind", ["smooth", "rough", "tied", "rare"])
def test_the_true_curves_are_the_means_of_many_examples(make, kind):
    population = make(kind, 0.05)
    many = [population.draw(50_000, np.random.default_rng(seed)) for seed in range(2)]
    means = np.mean([s.mean() for s in many], axis=0)
    error = np.std(many[0].values) / np.sqrt(100_000) * 5
    np.testing.assert_allclose(means, population.truth, atol=error)


@pytest.mark.parametrize("name", OTHERS)
def test_the_true_curves_of_the_others_are_means_too(name):
    population = others(name, 0.3)
    assert len(population.ts) == len(population.truth) == OTHERS[name][1]
    many = population.draw(100_000, np.random.default_rng(0))
    means = many.mean()
    influence = np.asarray(many.values) - means[:, None] * (1 if many.denominators is None else many.denominators)
    error = influence.std() / np.mean(1 if many.denominators is None else many.denominators) / np.sqrt(100_000)
    np.testing.assert_allclose(means, population.truth, atol=5 * error)


def test_a_hump_is_as_many_standard_errors_high_as_was_asked_for():
    population = of_size(losses, "smooth", 3.0, 100)
    rng = np.random.default_rng(0)
    heights = [(m := population.draw(100, rng).mean())[10] - (m[0] + m[-1]) / 2 for _ in range(2000)]
    assert np.mean(heights) / np.std(heights) == pytest.approx(3.0, rel=0.1)


def test_a_row_counts_what_it_says():
    table = coverage_table(8, (50,), intervals=["churn"], kinds=["often", "rare"])
    assert table.interval.tolist() == ["churn", "churn"] and table.trials.tolist() == [8, 8]
    assert table.exempt.tolist() == [False, True] and table.few_events.tolist()[1] > 0.8
    assert summary_cells(table)[0][:3] == ["interval", "kind", "n = 50"]
    assert summary_markdown(table).count("| churn |") == 2
    low = table.assign(coverage=0.5)
    assert missed_bars(low).kind.tolist() == ["often"]


def test_populations_that_the_intervals_were_not_made_with_have_a_table_of_their_own():
    table = coverage_table(4, (20, 50), kinds=["smooth", "gamma, 5 points"], intervals=["chord_barrier, loss"])
    assert [row[1] for row in summary_cells(table)] == ["kind", "smooth"]
    head, row = cells_of_others(table)
    assert head == ["kind", "chord_barrier", "width", "3 s.e. seen"] and row[0] == "gamma, 5 points"
    lowest = table[(table.kind == "gamma, 5 points") & (table.n == 50)].coverage.min()
    assert row[1] == f"{lowest:.2f}", "of 50 examples alone"
    text = summary_markdown(table)
    assert "| interval | kind |" in text and "| kind | chord_barrier |" in text
    assert missed_bars(table.assign(coverage=0.5)).kind.tolist() == ["smooth"] * 3 + ["gamma, 5 points"] * 2
    without = table[table.kind == "smooth"]
    assert len(cells_of_others(without)) == 1 and "| kind | chord_barrier |" not in summary_markdown(without)


def test_seeds_are_fixed():
    again = [coverage_table(5, (50,), intervals=["cka"], kinds=["Gaussian"]) for _ in range(2)]
    assert again[0].equals(again[1])


@pytest.mark.slow
def test_every_interval_meets_the_bars():
    table = coverage_table()
    missed = missed_bars(table)
    pairs = zip(missed.bar, missed.interval, missed.kind, strict=True)
    known = [(interval, kind) in KNOWN.get(bar.split()[0], ()) for bar, interval, kind in pairs]
    unknown = missed[[not k for k in known]]
    assert unknown.empty, unknown.to_string()
    pareto = table[table.kind.str.startswith("Pareto") & (table.n >= 50)]
    assert pareto.coverage.min() > LEAST_OF_PARETO


def test_every_kind_of_population_is_tried():
    kinds = {kind for kind, _, _ in cases()}
    assert {"smooth", "rough", "tied", "rare", *OTHERS} <= kinds and len(TS) == 21
