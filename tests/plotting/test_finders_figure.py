"""The picture of the path finders carries the table's numbers, and refuses a table without a curve."""

import pandas as pd
import pytest

from mcanalysis.errors import UserError
from mcanalysis.plotting.finders import finders_picture, plot_finders


def make_table(budgets=(60, 240)):
    rows = [{"curve": "linear", "gradients": 0, "success": 0.25, "median_barrier": 0.4}]
    rows += [
        {"curve": curve, "gradients": g, "success": 0.5 + 0.1 * i, "median_barrier": 0.2 - 0.05 * i}
        for i, curve in enumerate(("bezier-1", "polychain-3-neb")) for g in budgets
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(success_low=0.1, success_high=0.9, pairs=7)


@pytest.mark.parametrize("budgets", [(60,), (60, 240)])
def test_lines_are_the_tables_rows(budgets):
    table = make_table(budgets)
    figure = plot_finders(table)
    for axes, quantity in zip(figure.axes, ("success", "median_barrier"), strict=True):
        straight, *curves = axes.get_lines()[:1] + [bars.lines[0] for bars in axes.containers]
        assert set(straight.get_ydata()) == {table[quantity][0]}
        for line, curve in zip(curves, ("bezier-1", "polychain-3-neb"), strict=True):
            assert line.get_ydata().tolist() == table[table.curve == curve][quantity].tolist()
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(g) for g in budgets]


def test_the_caption_says_what_success_is_and_the_data_lie_beside():
    fits = pd.DataFrame({"strategy": ["er"] * 2, "seed": [0, 0], "space": "factor", "threshold": 0.05})
    picture = finders_picture(make_table(), fits.assign(gradients=[0, 60], fit_seed=0))
    assert "7 pairs" in picture.caption and "below 0.05 nats" in picture.caption and "1 run " in picture.caption
    assert list(picture.data) == ["", "fits"]
    with pytest.raises(UserError, match="a fitted curve"):
        plot_finders(make_table(()))
