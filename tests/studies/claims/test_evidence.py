"""Means over pairs against SciPy's t tests, slopes against closed forms, the picture of a table."""

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from mcanalysis.errors import UserError
from mcanalysis.plotting.intervals import plot_intervals
from mcanalysis.studies.claims.evidence import interval, over_pairs, shares_over_pairs, slopes
from mcanalysis.studies.claims.questions import questions

GAINS = np.random.default_rng(0).normal(0.1, 0.2, size=(15, 7))


def frame(values=GAINS, **labels):
    return pd.DataFrame([{"pair": p, "gain": g, "path": "line", **labels} for p, of in enumerate(values) for g in of])


def test_the_interval_is_that_of_a_t_test_over_the_means_of_pairs():
    (row,) = over_pairs(frame(), "gain", ["path"]).to_dict("records")
    means = GAINS.mean(axis=1)
    test = ttest_1samp(means, 0.0)
    low, high = test.confidence_interval(0.95)
    assert (row["pairs"], row["mean"]) == (15, pytest.approx(means.mean()))
    assert (row["low"], row["high"], row["p"]) == pytest.approx((low, high, test.pvalue))
    assert row["p_holm"] == pytest.approx(row["p"])


def test_transitions_of_a_pair_are_no_replications():
    """Each pair's seven values the same: seven times as many rows tell no more."""
    repeated = np.repeat(GAINS[:, :1], 7, axis=1)
    one, many = (over_pairs(frame(v), "gain", ["path"]).to_dict("records")[0] for v in (GAINS[:, :1], repeated))
    assert [one[name] for name in ("mean", "low", "high")] == pytest.approx([many[n] for n in ("mean", "low", "high")])


def test_p_values_are_corrected_for_the_rows_of_the_table():
    both = pd.concat([frame(), frame(GAINS + 1, path="curve")])
    table = over_pairs(both, "gain", ["path"])
    assert table.p_holm.max() == pytest.approx(table.p.max()) and table.p_holm.min() == pytest.approx(2 * table.p.min())


def test_one_pair_has_no_interval_and_missing_values_are_left_out():
    (row,) = over_pairs(frame(GAINS[:1]), "gain", ["path"]).to_dict("records")
    assert np.isnan([row["low"], row["high"], row["p"]]).all() and interval(row) == f"{row['mean']:+.3f}"
    holed = GAINS.copy()
    holed[3] = np.nan
    assert over_pairs(frame(holed), "gain", ["path"]).pairs.iloc[0] == 14
    assert over_pairs(frame()[:0], "gain", ["path"]).empty


def test_a_row_of_nothing_but_undefined_values_stays_and_is_corrected_for():
    holed = pd.concat([frame(), frame(GAINS * np.nan, path="curve")])
    table = over_pairs(holed, "gain", ["path"])
    line, curve = table.to_dict("records")
    assert line["p_holm"] == pytest.approx(2 * line["p"])
    assert (curve["pairs"], curve["undefined"], interval(curve)) == (0, GAINS.size, "undefined")


def test_shares_count_each_event_once_with_a_jackknife_over_pairs():
    """A pair with one event of seven that is lost has not the weight of a pair with seven: 1 of 8, not 1 of 2."""
    rows = [
        {"pair": p, "lost": lost, "all": 1, "path": "line"} for p, of in enumerate(([1], [0] * 7, [])) for lost in of
    ]
    (row,) = shares_over_pairs(pd.DataFrame(rows), "lost", "all", ["path"]).to_dict("records")
    assert (row["pairs"], row["of"], row["mean"]) == (2, 8, 1 / 8)
    rng = np.random.default_rng(1)
    part = rng.integers(0, 2, size=(6, 7))
    rows = [{"pair": p, "lost": v, "all": 1, "path": "line"} for p, of in enumerate(part) for v in of]
    (row,) = shares_over_pairs(pd.DataFrame(rows), "lost", "all", ["path"]).to_dict("records")
    test = ttest_1samp(part.mean(axis=1), 0.0).confidence_interval(0.95)  # of pairs of one size they are the same
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((part.mean(), test.low, test.high))


def test_a_pair_without_a_value_at_each_size_has_no_slope():
    """A slope over two of three rates is of another curve: here 0.63 for 0; and where no pair has the third, too."""
    rows = [{"of": "er", "pair": p, "rate": r, "gain": g} for p in (0, 1) for r, g in ((1 / 3, 0), (1, 1), (3, 0))]
    rows[-1]["gain"] = np.nan
    found = slopes(pd.DataFrame(rows), "gain", "rate", ["of"], 3).slope
    assert found[0] == pytest.approx(0.0, abs=1e-12) and np.isnan(found[1])
    assert slopes(pd.DataFrame([r for r in rows if r["rate"] < 3]), "gain", "rate", ["of"], 3).slope.isna().all()


def test_slopes_are_those_of_the_line_and_their_interval_is_over_pairs():
    rows = [
        {"of": "er", "pair": p, "rank": r, "gain": slope * np.log2(r) + p}
        for p, slope in enumerate((0.1, 0.2, 0.6))
        for r in (2, 8, 32)
    ]
    found = slopes(pd.DataFrame(rows), "gain", "rank", ["of"], 3)
    (row,) = over_pairs(found, "slope", ["of"]).to_dict("records")
    spread = np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3) * student.ppf(0.975, 2)
    assert row["mean"] == pytest.approx(0.3) and row["high"] - row["mean"] == pytest.approx(spread)


def test_every_question_has_a_letter_a_name_and_ends_as_one():
    found = questions()
    assert [q.letter for q in found] == list("abcdefghi")
    assert all(q.asked.endswith("?") for q in found) and len({q.name for q in found}) == 9


def test_the_picture_has_each_mean_at_its_place_filled_where_it_is_settled():
    table = over_pairs(pd.concat([frame(GAINS * 0), frame(GAINS + 1, path="curve"), frame(path="aligned")]), "gain",
                       ["path"])  # fmt: skip
    (axes,) = plot_intervals(table, "gain").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["line", "curve", "aligned"]
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    assert [m.get_xdata()[0] for m in marks] == pytest.approx(list(table["mean"]))
    filled = [matplotlib.colors.to_hex(m.get_markerfacecolor()) != "#ffffff" for m in marks]
    assert filled == list(table.p_holm <= 0.05) and filled[1]
    (axes,) = plot_intervals(table.assign(t_star=[0.5, 0.25, 0.75], other=[1.5, 2.5, 3.5]), "gain").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["line", "curve", "aligned"]  # numbers name no row
    with pytest.raises(UserError, match="at least one row"):
        plot_intervals(table[:0], "gain")
