"""The figure of certificates shows the table's numbers: points, their colours by examples, bands above the chord."""

import numpy as np
import pandas as pd
import pytest

from mcanalysis.errors import UserError
from mcanalysis.plotting.certificates import caption, plot_certificates


def a_table(tasks=("mean_old", "B")):
    t = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    rows = []
    for task in tasks:
        whose = {"path": "linear", "space": "factor", "start": "1-A", "end": "2-B", "task": task}
        loss = 1 + t + 0.3 * np.sin(np.pi * t)
        wide = np.array([0, 0.01, 0.02, 0.01, 0])
        values = {"t": t, "loss": loss, "loss_low": loss - wide, "loss_high": loss + 2 * wide}
        rows.append(pd.DataFrame({**whose, **values, "num_examples": [800, 0, 64, 0, 800]}))
    return pd.concat(rows)


def by_gid(figure, gid):
    (found,) = figure.findobj(lambda artist: artist.get_gid() == gid)
    return found


def test_points_bands_and_colours_are_those_of_the_table():
    figure = plot_certificates(a_table())
    for panel in range(2):
        points = by_gid(figure, f"points {panel}")
        assert points.get_offsets().data == pytest.approx(np.array([[0, 0], [0.5, 0.3], [1, 0]]), abs=1e-12)
        assert points.get_array().data.tolist() == [800, 64, 800]
        corners = by_gid(figure, f"band {panel}").get_paths()[0].vertices
        assert corners[:, 1].max() == pytest.approx(0.34)
        assert corners[corners[:, 0] == 0.25, 1].min() == pytest.approx(0.3 * np.sin(np.pi / 4) - 0.01)


def test_the_caption_says_what_is_known_and_where_the_budget_ended():
    barriers = pd.DataFrame(
        [
            {"start": "1-A", "end": "2-B", "path": "linear", "space": "factor", "task": "B", "evaluations": 7.5,
             "chord_barrier_at_least": 0.28, "chord_barrier_at_most": 0.34, "tolerance_reached": False},
            {"start": "1-A", "end": "2-B", "path": "linear", "space": "factor", "task": "A",
             "chord_barrier_at_most": np.nan},
        ]
    )  # fmt: skip
    words = caption(a_table(), barriers)
    assert "A → B, linear factor, B: chord barrier of the loss from 0.280 to 0.340" in words
    assert "budget ended" in words
    assert "7.5" in words
    assert words.count("chord barrier of the loss") == 1


def test_tables_without_rows_or_columns_are_refused():
    with pytest.raises(UserError, match="--tolerance"):
        plot_certificates(a_table()[:0])
    with pytest.raises(UserError, match="loss_low"):
        plot_certificates(a_table().drop(columns="loss_low"))
