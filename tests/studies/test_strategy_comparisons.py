"""Strategies against each other: SciPy's t tests on tables of metrics, what is said of them, and the files."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mcanalysis.errors import UserError
from mcanalysis.studies import strategy_words as words
from mcanalysis.studies.comparison import Comparison
from mcanalysis.studies.strategy_comparisons import compared_summary, comparisons, reference_of
from mcanalysis.studies.strategy_words import compared_cells, latex_table, strategy_words, write_comparison
from mcanalysis.training.config import RunConfig

NAN = float("nan")


def metrics(values, orders=None):
    """A table of metrics from {strategy: scores per seed, or per order and seed}; ilora has a fast learner besides."""
    rows = []
    for strategy, scores in values.items():
        for order, own in zip(orders or [None], scores if orders else [scores], strict=True):
            for seed, score in enumerate(own):
                for learner in ("fast", "slow") if strategy == "ilora" else ("fast",):
                    answers = strategy != "ilora" or learner == "slow"
                    row = {"strategy": strategy, "learner": learner, "seed": seed, "answers": answers}
                    row |= {"order": order} if orders else {}
                    rows.append(row | {"average_accuracy": score if answers else 0.0, "forgetting": 0.5 - score})
    return pd.DataFrame(rows)


THREE = {"sequential": [0.3, 0.35, 0.31], "er": [0.8, 0.9, 0.86], "ilora": [0.9, 0.88, 0.91]}


def told(table, against=None):
    _, _, *lines = strategy_words(table, against)
    return lines


def test_differences_are_paired_by_seed_and_corrected_for_their_number():
    found = comparisons(metrics(THREE))
    assert list(found.family) == ["er"] * 2 + ["all"] * 3
    for row in found.itertuples():
        expected = stats.ttest_rel(THREE[row.strategy], THREE[row.against])
        assert (row.seeds, row.orders, row.pairs, row.degrees) == (3, 1, 3, 2)
        assert row.difference == pytest.approx(np.mean(THREE[row.strategy]) - np.mean(THREE[row.against]))
        assert row.p == pytest.approx(expected.pvalue)
        number = 3 if row.family == "all" else 2
        for ends, together in (((row.low, row.high), 1), ((row.low_together, row.high_together), number)):
            interval = expected.confidence_interval(1 - 0.05 / together)
            assert ends == pytest.approx((interval.low, interval.high))
    p = stats.ttest_rel(THREE["sequential"], THREE["er"]).pvalue
    assert found.p_holm[0] == pytest.approx(2 * p) and found.p_holm[1] == pytest.approx(found.p[1])


def test_pairs_of_seed_and_order_answer_for_both():
    scores = np.random.default_rng(0).normal(0.5, 0.1, size=(2, 3, 4))  # strategy, order, seed
    found = comparisons(metrics(dict(zip(("er", "gem"), scores, strict=True)), ["a", "b", "c"])).iloc[0]
    gaps = scores[1] - scores[0]
    of_seeds, of_orders = 3 * np.var(gaps.mean(axis=0), ddof=1), 4 * np.var(gaps.mean(axis=1), ddof=1)
    assert (found.strategy, found.against) == ("gem", "er")
    assert (found.seeds, found.orders, found.pairs, found.degrees) == (4, 3, 12, 2)
    assert found.error == pytest.approx(np.sqrt((of_seeds + of_orders) / 12))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(gaps.mean()) / found.error, 2))


def test_the_reference_is_the_one_asked_for_else_replay_else_sequential():
    assert reference_of(["sequential", "er"]) == "er" and reference_of(["gem", "sequential"]) == "sequential"
    assert comparisons(metrics(THREE), "ilora").against[0] == "ilora"
    with pytest.raises(UserError, match="sequential, er, ilora, got 'gem'"):
        comparisons(metrics(THREE), "gem")
    with pytest.raises(UserError, match="er, gem, got 'ilora'"):  # before anything is trained
        Comparison(strategy=("er", "gem"), against="ilora").configs(RunConfig(), {})
    without_score = metrics({"er": [0.5, 0.6], "gem": [0.7, 0.8], "individual": [NAN, NAN]})
    with pytest.raises(UserError, match="er, gem, got 'individual'"):
        comparisons(without_score, "individual")
    assert set(comparisons(without_score).strategy) == {"gem", "er"}


def test_the_summary_has_differences_and_ranks_in_one_row_of_each_strategy():
    table = metrics({name: [values, values[::-1]] for name, values in THREE.items()}, ["a", "b"])
    summary = compared_summary(table)
    own = summary[summary.mean_rank.notna()]
    assert list(zip(own.strategy, own.learner, own.order, strict=True)) == [
        ("sequential", "fast", "mean"), ("er", "fast", "mean"), ("ilora", "slow", "mean"),
    ]  # fmt: skip
    ranks = stats.rankdata([-np.array(v) for v in THREE.values()], axis=0).mean(axis=1)
    assert list(own.mean_rank) == pytest.approx(list(ranks))
    found = comparisons(table).iloc[0]
    assert (own.difference.iloc[0], own.difference_low.iloc[0]) == pytest.approx((found.difference, found.low_together))
    assert own.against.tolist()[::2] == ["er", "er"] and np.isnan(own.difference.iloc[1])
    assert list(summary.columns[:5]) == ["strategy", "learner", "answers", "order", "seeds"]


def test_what_is_told_after_correction():
    line, meaning = told(metrics(THREE))
    p = 2 * stats.ttest_rel(THREE["sequential"], THREE["er"]).pvalue
    assert line.startswith(
        f"average accuracy against er: below sequential -0.533 (p = {p:.2g}); not told apart ilora ("
    )
    assert "over seeds that hold together for all 2 (Bonferroni, Student's t, degrees of freedom 2)" in meaning
    head, *rows = compared_cells(compared_summary(metrics(THREE)))
    assert head[3:7] == ["average accuracy", "minus er", "alone", "rank"]
    paired = stats.ttest_rel(THREE["sequential"], THREE["er"])
    together, alone = (paired.confidence_interval(1 - part) for part in (0.05 / 2, 0.05))
    ends = [f"[{interval.low:+.3f}, {interval.high:+.3f}]" for interval in (together, alone)]
    assert rows[0][4:7] == [f"-0.533 {ends[0]}", ends[1], "3.0 [3, 3]"]
    assert rows[1][4:7] == ["–", "–", "1.7 [1, 2]"] and rows[2][4:7] == ["–"] * 3  # the reference; the fast learner
    assert "`alone`: those of each by itself" in meaning
    line, _ = told(metrics(THREE), "sequential")
    assert line.startswith("average accuracy against sequential: above er +0.533 (p = ") and "ilora +0.577" in line


def test_one_seed_has_no_interval_and_says_so():
    table = metrics({name: values[:1] for name, values in THREE.items()})
    line, meaning = told(table)
    assert line == "average accuracy minus er: sequential -0.500, ilora +0.100"
    assert "no intervals, for which it takes several seeds or orders" in meaning
    assert [row[4:6] for row in compared_cells(compared_summary(table))[1:]] == [
        ["-0.500", "3.0"], ["–", "2.0"], ["–", "–"], ["+0.100", "1.0"],
    ]  # fmt: skip


def test_runs_that_are_missing_and_scores_that_are_equal_are_named():
    table = metrics({**THREE, "gem": THREE["er"], "lwf": [0.8, NAN, 0.7]})
    _, meaning = told(table)
    assert "only runs that both have count (lwf 2 of 3)" in meaning
    assert "none where it is the same in all runs, which does not show how it varies (gem)" in meaning
    found = comparisons(table).set_index(["family", "strategy"])
    assert found.difference["er", "gem"] == 0 and np.isnan(found.p_holm["er", "gem"])
    assert found.difference["er", "lwf"] == pytest.approx(np.mean([0.0, 0.7 - 0.86])) and found.pairs["er", "lwf"] == 2
    summary = compared_summary(table).set_index("strategy")
    expected = stats.rankdata([[-0.3, -0.31], [-0.8, -0.86], [-0.9, -0.91], [-0.8, -0.86], [-0.8, -0.7]], axis=0)
    assert summary.mean_rank.dropna().tolist() == pytest.approx(expected.mean(axis=1).tolist())


def test_of_what_an_interval_says_nothing_is_said():
    scores = np.random.default_rng(1).normal(0.5, 0.1, size=(3, 2, 3))  # strategy, order, seed
    scores[2, 1] = NAN
    table = metrics(dict(zip(("er", "gem", "lwf"), scores, strict=True)), ["a", "b"])
    _, meaning = told(table)
    assert "intervals over seeds and orders" in meaning
    assert "which of lwf say nothing of other orders: they have one order" in meaning and "other seeds" not in meaning
    assert "say nothing" not in told(table[table.strategy != "lwf"])[1]


def test_one_strategy_is_compared_with_nothing():
    for table in (metrics({"er": [0.5, 0.6]}), metrics({"er": [0.5, 0.6], "individual": [NAN, NAN]})):
        assert comparisons(table).empty and "against" not in compared_summary(table)
        assert told(table) == [] and "rank" not in compared_cells(compared_summary(table))[0]


def read_latex(text):
    """The rows of a table, as text again; fails where braces, environments or columns do not fit."""
    bare = re.sub(r"\\[{}\\]", "", text)
    depths = list(itertools.accumulate({"{": 1, "}": -1}.get(c, 0) for c in bare))
    assert min(depths) >= 0 and depths[-1] == 0
    assert re.findall(r"\\begin{(\w+)}", text) == re.findall(r"\\end{(\w+)}", text)[::-1] == ["table", "tabular"]
    assert text.count("$") - text.count(r"\$") == 2 * len(re.findall(r"(?<!\\)\$[^$]+(?<!\\)\$", text))
    assert not re.search(r"(?<!\\)[_%&#]", re.sub(r" & ", " ", text))
    body = text[text.index(r"\toprule") + 8 : text.index(r"\bottomrule")].replace("\\midrule\n", "")
    rows = [line.removesuffix(r" \\").split(" & ") for line in body.strip().splitlines()]
    assert {len(row) for row in rows} == {len(re.search(r"\\begin{tabular}{(\w+)}", text)[1])}
    for shown, meant in (("$-$", "-"), (r"$\pm$", "±"), ("--", "–"), (r"\_", "_")):
        rows = [[cell.replace(shown, meant) for cell in row] for row in rows]
    return rows


def test_latex_is_escaped():
    rows = [["a_b", "100 %"], ["x & y", r"{\$~^#}"], ["-0.5 ± 0.1", "–"]]
    text = latex_table(rows, "`o_lora`: 95 %")
    assert r"\caption{o\_lora: 95 \%}" in text and r"a\_b & 100 \% \\" in text
    assert r"x \& y & \{\textbackslash{}\$\textasciitilde{}\textasciicircum{}\#\} \\" in text
    assert r"$-$0.5 $\pm$ 0.1 & --" in text
    assert read_latex(latex_table([rows[0], rows[2]], "")) == [["a_b", r"100 \%"], rows[2]]


def test_markdown_and_latex_have_the_same_numbers(tmp_path, monkeypatch):
    table = metrics({**THREE, "o_lora": [0.4, 0.5, 0.41]}).assign(reference=None, train_seconds=2.0)
    monkeypatch.setattr(words, "comparison_table", lambda runs: table)
    monkeypatch.setattr(words, "comparison_notes", lambda runs, table, columns=None: "4 tasks.")
    write_comparison([], tmp_path, "sequential")
    folder = tmp_path / "comparison"
    markdown = (folder / "summary.md").read_text()
    head, _, *rows = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    titles, *latex = read_latex((folder / "summary.tex").read_text())
    assert titles == ["strategy", "learner", "average accuracy", "minus sequential", "alone", "rank", "forgetting"]
    shown = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row[0] for row in latex] == ["sequential", "er", "ilora", "o_lora"]  # ilora's answering learner alone
    answering = [row for row in shown if row["learner"] != "fast" or row["strategy"] != "ilora"]
    assert latex == [[row[title].removesuffix(", answers") for title in titles] for row in answering]
    assert "`minus sequential`" in markdown and "minus sequential: difference" in (folder / "summary.tex").read_text()
    saved = pd.read_csv(folder / "comparisons.csv")
    pd.testing.assert_frame_equal(saved, comparisons(table, "sequential"))
    assert pd.read_csv(folder / "summary.csv").against.dropna().unique().tolist() == ["sequential"]
