"""The picture of basins carries the tables' numbers, and refuses to draw nothing."""

import math

import pandas as pd
import pytest

from mcanalysis.errors import UserError
from mcanalysis.plotting.basin import basin_picture, plot_basin

WHOSE = {"strategy": "er", "seed": 0}


def by_gid(figure, gid):
    (found,) = figure.findobj(lambda artist: artist.get_gid() == gid)
    return found


def test_radii_beyond_the_largest_step_stand_at_the_edge_and_those_of_no_score_are_left_out():
    rows = [("1-A", "random", 0.3, 0.5), ("1-A", "worst", math.inf, math.inf), ("2-B", "random", math.nan, math.nan)]
    table = pd.DataFrame(rows, columns=["task", "direction", "radius", "first_lost"])
    table = table.assign(**WHOSE, last_held=0.2, keep=0.9)
    figure = plot_basin({"basin_radius": table})
    (axes,) = figure.axes
    assert by_gid(figure, "random").get_ydata().tolist()[0] == 0.3
    beyond = by_gid(figure, "worst beyond").get_ydata()
    assert len(beyond) == 1 and 0.5 < beyond[0] < axes.get_ylim()[1]


def test_a_line_of_forks_is_the_largest_of_each_step():
    forks = [WHOSE | {"task": "1-A", "num_steps": 10, "after": after, "chord_barrier": b, "chord_barrier_low": 0.0,
             "chord_barrier_high": 1.0, "threshold": 0.05} for after, b in ((0, 0.2), (0, 0.4), (10, 0.0))]  # fmt: skip
    half = pd.DataFrame([{"half": 1.0, "half_low": -math.inf, "half_high": math.inf}])
    picture = basin_picture({"basin_forks": pd.DataFrame(forks), "basin_half": half})
    line = next(c.lines[0] for c in picture.figure.axes[0].containers)
    assert line.get_xydata().tolist() == [[0.0, 0.4], [1.0, 0.0]]
    assert list(picture.data) == ["forks", "half"] and "0.05 nats" in picture.caption


def test_strategies_are_told_apart_by_a_legend_and_seeds_of_one_look_alike():
    two = [WHOSE, WHOSE | {"seed": 1}, {"strategy": "ewc", "seed": 0}]
    forks = pd.DataFrame(
        [whose | {"task": "1-A", "num_steps": 10, "after": after, "chord_barrier": 0.0, "chord_barrier_low": 0.0,
                  "chord_barrier_high": 0.1, "threshold": 0.05} for whose in two for after in (0, 10)]
    )  # fmt: skip
    volumes = pd.DataFrame(
        [whose | {"learner": "fast", "num_minima": 3, "volume": 0.5, "volume_low": 0.4, "volume_high": 0.6,
                  "keep": 0.9, "num_samples": 60} for whose in two]
    )  # fmt: skip
    picture = basin_picture({"basin_forks": forks, "basin_volume": volumes})
    left, right = picture.figure.axes
    for axes in (left, right):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ER", "EWC"]
    assert [c.lines[0].get_linestyle() for c in left.containers] == ["-", "-", "--"]
    first, second, other = (c.lines[0].get_color() for c in right.containers)
    assert first == second != other
    assert "style: its strategy" in picture.caption


def test_nothing_is_refused():
    with pytest.raises(UserError, match=r"run analyses/basin\.py"):
        plot_basin({})
