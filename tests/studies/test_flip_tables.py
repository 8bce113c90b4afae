"""Rows of flips.csv and kept_questions.csv by hand, what is left out, their summary and their figure."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from mcanalysis.connectivity.profile import Profile, grid
from mcanalysis.errors import UserError
from mcanalysis.evaluation.objective import Objective
from mcanalysis.metrics.scores import SCORES
from mcanalysis.plotting.flips import flips_caption, plot_flips, turned_rows
from mcanalysis.studies.connectivity.flip_tables import excerpt, flip_rows
from mcanalysis.studies.connectivity.summaries import flip_summary
from mcanalysis.tasks.task import Example, Task

TS = grid(5)
LABELS = {
    "strategy": "er", "learner": "fast", "seed": 0, "space": "factor", "path": "linear", "start": "1-A", "end": "2-B",
}  # fmt: skip
OLD = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=float)
NEW = np.array([[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=float)


def profile(scores):
    nll = np.ones(scores.shape)
    return Profile(TS, nll.mean(1), nll, np.ones(scores.shape[1]), scores.mean(1), scores)


def objective(name, score="accuracy", answers="ABAB"):
    examples = tuple(Example(f"=Question {i}\n of {name}", answer) for i, answer in enumerate(answers))
    return Objective(Task(name, "en", score, 4), "test", examples, (), 0, name)


def made(**more):
    profiles = {"A": profile(OLD), "B": profile(NEW)} | {name: p for name, (p, _) in more.items()}
    objectives = {"A": objective("A"), "B": objective("B")} | {name: o for name, (_, o) in more.items()}
    return [pd.DataFrame(rows) for rows in flip_rows(profiles, objectives, ["A"], "B", LABELS)]


def test_flips_by_hand():
    flips, _ = made()
    cells = flips.set_index(["task", "t", "against"])
    assert len(flips) == 2 * 5 * 3 and set(zip(flips.task, flips.role, strict=True)) == {("A", "old"), ("B", "new")}
    assert cells.loc["A"].loc[:, "start", :].lost.tolist() == [0, 1, 2, 3, 2]
    assert cells.loc["A"].loc[:, "start", :].gained.tolist() == [0, 0, 1, 1, 0]
    assert cells.loc["A"].loc[:, "end", :].lost.tolist() == [0, 1, 1, 1, 0]
    assert cells.loc["A"].loc[:, "both", :].gained.tolist() == [0, 0, 1, 1, 0]
    assert cells.loc["A"].loc[:, "both", :].lost.tolist() == [0, 1, 1, 1, 0]
    row = cells.loc[("A", 0.75, "start")]
    assert (row.num_examples, row.right, row.lost_rate, row.gained_rate) == (4, 0.25, 0.75, 0.25)
    assert row.guess_rate == pytest.approx(1 / 3) and row.p_value == binomtest(3, 4, 0.5).pvalue
    # 1→0 three times, 0→1 once; at t a quarter is right, which of four is not clearly below a third
    assert row.lost_corrected == pytest.approx(0.75 / (1 - 1 / 3))
    assert row.gained_corrected == pytest.approx(0.25 / (1 - 1 / 3))
    ends = flips[(flips.t == 0) & (flips.against != "end") | (flips.t == 1) & (flips.against != "start")]
    assert ends.lost_corrected.isna().all() and flips.lost_corrected.notna().sum() == len(flips) - len(ends)


def test_kept_questions_are_those_that_the_middle_alone_answers():
    _, kept = made()
    assert kept[["task", "example", "num_right", "num_points", "first_t", "last_t"]].to_numpy().tolist() == [
        ["A", 3, 2, 3, 0.5, 0.75]
    ]
    assert kept.question[0] == "'=Question 3 of A" and kept.answer[0] == "B"
    wrong_at_the_end = np.where(np.arange(5)[:, None] == 4, 0.0, NEW)
    again = made(C=(profile(wrong_at_the_end), objective("C")))[1]
    assert again[again.task == "C"].example.tolist() == [0, 1, 2] and set(again[again.task == "C"].role) == {"general"}


def test_what_is_not_right_or_wrong_and_what_was_not_kept_is_left_out():
    lucky = profile(OLD)  # a graded score that happens to be 0 or 1
    lost = Profile(TS, np.ones(5), np.ones((5, 4)), np.ones(4), OLD.mean(1), None)
    flips, kept = made(graded=(lucky, objective("graded", "rouge_l")), old_run=(lost, objective("old_run")))
    assert set(flips.task) == {"A", "B"} and set(kept.task) == {"A"}
    exact = {name for name, score in SCORES.items() if score.is_exact}
    assert exact == set(SCORES) - {"rouge_l", "sari", "edit_similarity"}


def test_an_example_without_a_score_is_not_counted():
    broken = OLD.copy()
    broken[2, 0] = np.nan
    rows, _ = made(C=(profile(broken), objective("C")))
    numbers = rows[(rows.task == "C") & (rows.against == "start")].set_index("t").num_examples
    assert numbers.tolist() == [4, 4, 3, 4, 4]


def test_excerpts_are_one_line_and_no_formula():
    assert excerpt("a\tb\r\nc\x1b[31m") == "a b c\\x1b[31m" and len(excerpt("x" * 1000)) == 160
    assert [excerpt(s) for s in ("=HYPERLINK(1)", "@x", "-3.5", "+1,234", "- a")] == [
        "'=HYPERLINK(1)", "'@x", "-3.5", "+1,234", "'- a"
    ]  # fmt: skip


def test_summary_and_figure_take_means_over_tasks_of_what_lies_below_zero_too():
    flips, _ = made(C=(profile(1 - OLD), objective("C")))
    flips.loc[flips.task == "C", "role"] = "old"
    (row,) = flip_summary(flips).to_dict("records")
    assert row["lost_middle_rate"] == (2 / 4 + 1 / 4) / 2 and row["gained_end_rate"] == 1
    assert row["middle_alone_rate"] == pytest.approx((1 / 4 + 0 + 1 / 4) / 3)
    old = flips[(flips.role == "old") & (flips.against == "start") & (flips.t == 0.5)].lost_corrected
    assert row["lost_middle_corrected"] == pytest.approx(old.mean())
    drawn = turned_rows(flips)
    half = drawn[(drawn.t == 0.5) & (drawn.role == "old")].iloc[0]
    assert (half.lost_rate, half.num_tasks) == (0.375, 2) and half.lost_corrected == pytest.approx(old.mean())
    assert drawn[(drawn.t == 0.25) & (drawn.role == "old")].lost_corrected.item() < 0
    figure = plot_flips(flips)
    (line,) = [each for each in figure.axes[0].lines if each.get_gid() == "lost old 0"]
    assert line.get_ydata() == pytest.approx(-drawn[drawn.role == "old"].lost_rate)
    words = flips_caption(flips)
    at_end = flips[(flips.t == 1) & (flips.against == "start") & (flips.role == "old")]
    assert f"mean over transitions and tasks: lost of old tasks {at_end.lost_rate.mean():.1%}" in words
    assert "the linear path in factor space" in words and "er" in words
    dotted = [each for each in figure.axes[0].lines if each.get_linestyle() == ":"]
    assert all(np.nan_to_num(line.get_ydata()).min() >= 0 for line in dotted[::2])  # gained above 0, lost below it
    assert all(np.nan_to_num(line.get_ydata()).max() <= 0 for line in dotted[1::2])
    assert "corrected for guessing" in [text.get_text() for text in figure.legends[0].get_texts()]
    edges = figure.get_tightbbox()
    assert edges.x0 > -0.05 and edges.x1 < figure.get_figwidth() + 0.05, "a single panel is a column wide"
    with pytest.raises(UserError, match="space"):
        plot_flips(pd.concat([flips, flips.assign(space="delta")]))
    with pytest.raises(UserError, match="exact scores"):
        plot_flips(flips.assign(role="general"))
