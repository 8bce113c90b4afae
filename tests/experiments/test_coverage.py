"""The bars that every interval must meet, by simulation; and that the table says what was simulated."""

import numpy as np
import pytest

from mcanalysis.experiments.coverage import coverage_table, missed_bars, summary_cells, summary_markdown
from mcanalysis.experiments.coverage.populations import TS, losses, of_size, scores
from mcanalysis.experiments.coverage.trials import cases

KNOWN = {("above_chord, score", "tied"), ("chord_dip, score", "tied"), ("hypervolume", "rare")}
"""Wider than twice the percentile interval, which is too narrow there, where few answers change: docs/coverage.md."""


@pytest.mark.parametrize("make", [losses, scores])
@pytest.mark.parametrize("kind", ["smooth", "rough", "tied", "rare"])
def test_the_true_curves_are_the_means_of_many_examples(make, kind):
    population = make(kind, 0.05)
    many = [population.draw(50_000, np.random.default_rng(seed)) for seed in range(2)]
    means = np.mean([s.mean() for s in many], axis=0)
    error = np.std(many[0].values) / np.sqrt(100_000) * 5
    np.testing.assert_allclose(means, population.truth, atol=error)


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


def test_seeds_are_fixed():
    again = [coverage_table(5, (50,), intervals=["cka"], kinds=["Gaussian"]) for _ in range(2)]
    assert again[0].equals(again[1])


@pytest.mark.slow
def test_every_interval_meets_the_bars():
    missed = missed_bars(coverage_table())
    of_width = missed.bar.str.startswith("width")
    known = [
        w and pair in KNOWN for w, pair in zip(of_width, zip(missed.interval, missed.kind, strict=True), strict=True)
    ]
    unknown = missed[[not k for k in known]]
    assert unknown.empty, unknown.to_string()


def test_every_kind_of_population_is_tried():
    kinds = {kind for kind, _, _ in cases()}
    assert {"smooth", "rough", "tied", "rare"} <= kinds and len(TS) == 21
