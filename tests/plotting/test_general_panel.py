"""The panel of general ability below the stability–plasticity picture: what is drawn where, and when there is none."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from mcanalysis.plotting.stability_plasticity import (
    drawn_rows,
    plot_stability_plasticity,
    stability_plasticity_caption,
)

KEPT = {"text": [0.8, 0.7, 0.5], "facts": [0.6, 0.9, 0.3]}


@pytest.fixture
def profiles():
    rows = []
    scored = {"sequential": ([0.9, 0.8, 0.1], [0.1, 0.7, 0.9]), "er": ([0.9, 0.9, 0.8], [0.1, 0.5, 0.8])}
    for strategy, (old, new) in scored.items():
        for i, t in enumerate((0.0, 0.5, 1.0)):
            label = {
                "strategy": strategy, "learner": "fast", "seed": 0, "space": "factor", "path": "linear", "start": "1-A",
                "end": "2-B", "t": t, "split": "test", "num_examples": 60,
            }  # fmt: skip
            scores = {"A": old[i], "B": new[i], "mean_old": old[i], "mean": (old[i] + new[i]) / 2}
            for task, score in scores.items():
                role = {"A": "old", "B": "new"}.get(task, "mean")
                values = {"score": score, "score_low": score - 0.05, "score_high": score + 0.05}
                rows.append({**label, "task": task, "role": role, "loss": 1.0, **values})
            for task, kept in KEPT.items():
                ends = {"retention": kept[i], "retention_low": kept[i] - 0.06, "retention_high": kept[i] + 0.08}
                rows.append({**label, "task": task, "role": "general", "loss": 1.0, **ends})
            rows.append({**label, "task": "lost", "role": "general", "loss": 1.0})  # the base scored 0
    return pd.DataFrame(rows)


def drawn(figure):
    return {line.get_gid(): line for axes in figure.axes for line in axes.lines if line.get_gid()}


def test_mean_retention_against_the_mean_score(profiles):
    figure = plot_stability_plasticity(profiles)
    lines = drawn(figure)
    kept = np.mean([KEPT["text"], KEPT["facts"]], axis=0)
    along = lines["general sequential linear-factor"]
    assert along.get_xdata().tolist() == pytest.approx([0.5, 0.75, 0.5])
    assert along.get_ydata().tolist() == pytest.approx(kept.tolist())
    assert lines["general before"].get_xydata().tolist() == [pytest.approx([0.5, kept[0]])]
    (panel,) = [axes for axes in figure.axes if "general" in axes.get_ylabel()]
    (bar,) = [c for c in panel.containers if c.lines[0].get_xydata().tolist() == [pytest.approx([0.8, kept[2]])]]
    low, high = bar.lines[2][1].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((kept[2] - 0.06 / 2**0.5, kept[2] + 0.08 / 2**0.5))
    assert "over text, facts (mean)" in stability_plasticity_caption(profiles)
    assert set(drawn_rows(profiles).task) == {"mean_old", "B", "mean", "text", "facts", "lost"}
    plt.close(figure)


def test_no_panel_without_general_tasks(profiles):
    trained = profiles[profiles.role != "general"]
    for table in (trained, trained.drop(columns=["retention", "retention_low", "retention_high", "role"])):
        figure = plot_stability_plasticity(table)
        assert len(figure.axes) == 1 and not [gid for gid in drawn(figure) if "general" in gid]
        assert "retention" not in stability_plasticity_caption(table)
        assert set(drawn_rows(table).task) == {"mean_old", "B"}
        plt.close(figure)
