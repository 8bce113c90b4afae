"""The curvature figures carry the tables' numbers, at print size, and refuse what they cannot draw."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from mcanalysis.errors import UserError
from mcanalysis.plotting.curvature import (
    eigenvalues_caption,
    plot_eigenvalues,
    plot_predicted_forgetting,
    plot_spectrum,
    predicted_forgetting_caption,
    spectrum_caption,
)

RUNS = (("sequential", "fast", 0), ("er", "fast", 0), ("ilora", "slow", 0))
NAMES = ("1-C-STANCE", "2-FOMC", "3-MeetingBank")


def make_tables(runs=RUNS):
    curvature, spectrum, forgetting, correlations = [], [], [], []
    for i, run in enumerate(runs):
        labels = dict(zip(("strategy", "learner", "seed"), run, strict=True))
        for k, name in enumerate(NAMES):
            for task in (name[2:], "mean_old")[: 1 + (k > 0)]:
                row = {"minimum": name, "task": task, "num_examples": 50, "largest_residual": 0.01}
                row |= {"top_1": 10.0**i + k, "top_2": 1.0, "bottom_1": -2.0 - k, "bottom_2": np.nan}
                curvature.append(labels | row)
        at = np.linspace(-2, 30, 64)
        for task in ("MeetingBank", "mean_old"):
            constants = {"minimum": NAMES[-1], "task": task, "num_examples": 50, "num_coordinates": 1000}
            constants["width"] = 0.3 * (1 + i) + (task == "mean_old")
            spectrum += [labels | constants | {"eigenvalue": x, "density": np.exp(-abs(x))} for x in at]
        for k, task in ((1, "A"), (1, "mean_old"), (2, "A"), (2, "B"), (2, "mean_old")):
            values = {"predicted": (k - 1.5) * 10**i, "measured": 0.3 * k * i - 0.2}
            ends = {"start": str(k), "end": str(k + 1), "task": task, "num_examples": 100}
            forgetting.append(labels | ends | values)
        for over in ("tasks", "transitions"):
            correlations.append(labels | {"over": over, "predictor": "predicted", "rho": 0.25, "n": 3})
    return [pd.DataFrame(t) for t in (curvature, spectrum, forgetting, correlations)]


def by_gid(figure):
    return {line.get_gid(): line for axes in figure.axes for line in axes.lines if line.get_gid()}


def test_eigenvalues_are_those_of_the_table():
    curvature, *_ = make_tables()
    figure = plot_eigenvalues(curvature)
    for axes, places, is_old in zip(figure.axes, ([0, 1, 2], [1, 2]), (False, True), strict=True):
        lines = {line.get_gid(): line for line in axes.lines}
        for run in RUNS:
            rows = curvature[(curvature.strategy == run[0]) & ((curvature.task == "mean_old") == is_old)]
            for end in ("top", "bottom"):
                line = lines[f"{end} {run[0]} {run[1]} {run[2]}"]
                np.testing.assert_array_equal(np.round(line.get_xdata()), places)  # set apart sideways
                np.testing.assert_array_equal(line.get_ydata(), rows[f"{end}_1"])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["C-STANCE", "FOMC", "MeetingBank"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_marks_are_those_of_the_table_and_the_diagonal_is_one():
    _, _, forgetting, correlations = make_tables()
    figure = plot_predicted_forgetting(forgetting, correlations)
    lines = by_gid(figure)
    for strategy, learner, seed in RUNS:
        rows = forgetting[forgetting.strategy == strategy]
        for kind, chosen in (
            ("tasks", rows[rows.task != "mean_old"]), ("transitions", rows[rows.task == "mean_old"])
        ):  # fmt: skip
            line = lines[f"{kind} {strategy} {learner} {seed}"]
            np.testing.assert_array_equal(line.get_xdata(), chosen.predicted)
            np.testing.assert_array_equal(line.get_ydata(), chosen.measured)
    np.testing.assert_array_equal(*lines["identity"].get_data())
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "ER: ρ = 0.25 (3 small marks)" in words


@pytest.mark.parametrize("number", [1, 2, 3])
def test_print_rules(number):
    curvature, spectrum, forgetting, correlations = make_tables(RUNS[:number])
    for figure in (
        plot_spectrum(spectrum), plot_eigenvalues(curvature), plot_predicted_forgetting(forgetting, correlations)
    ):  # fmt: skip
        assert figure.get_figwidth() in (3.25, 6.75)
        figure.draw_without_rendering()
        frame = figure.bbox
        renderer = figure.canvas.get_renderer()
        assert all(t.get_fontsize() >= 7.0 for t in figure.findobj(Text))
        boxes = {axes.get_title(): axes.get_tightbbox(renderer) for axes in figure.axes}
        boxes |= {text.get_text(): text.get_window_extent(renderer) for text in figure.texts}
        (legend,) = (legend.get_window_extent(renderer) for legend in figure.legends)
        for words, box in (*boxes.items(), ("legend", legend)):
            inside = box.x0 >= -1 and box.x1 <= frame.width + 1 and box.y0 >= -1 and box.y1 <= frame.height + 1
            assert inside, (words, box)
        assert not [words for words, box in boxes.items() if legend.overlaps(box)], "the legend covers something"
    assert "50 examples" in spectrum_caption(spectrum) and "0.01" in eigenvalues_caption(curvature)
    assert "ρ = 0.25 (n = 3)" in predicted_forgetting_caption(forgetting, correlations)


def test_refusals():
    curvature, spectrum, forgetting, correlations = make_tables()
    with pytest.raises(UserError, match="top_1"):
        plot_eigenvalues(curvature.drop(columns="top_1"))
    with pytest.raises(UserError, match="density"):
        plot_spectrum(spectrum.drop(columns="density"))
    with pytest.raises(UserError, match="Expected rows"):
        plot_predicted_forgetting(forgetting[:0], correlations)


def test_the_spectrum_tells_the_width_of_each_curve():
    spectrum = make_tables()[1]
    told = spectrum_caption(spectrum)
    assert "sequential 0.3 (MeetingBank), 1.3 (old tasks); ER 0.6 (MeetingBank), 1.6 (old tasks)" in told
