"""How results show themselves in a notebook: escaped, and with the numbers that they have."""

import re

import numpy as np
import pytest

from mcanalysis.connectivity.profile import Profile
from mcanalysis.html_table import html_curve, html_table


def test_everything_is_escaped():
    table = html_table(["<b>"], [["<i>", 0.5, "<u>"], ["&", None, 1]], shaded=(1,), caption="<s>")
    assert not re.search(r"<[bius]>", table)
    assert "0.500" in table and "–" in table


def test_a_curve_has_the_values_where_they_belong():
    svg = html_curve(np.array([0.0, 0.5, 1.0]), np.array([1.0, 3.0, 2.0]), "loss")
    points = [tuple(map(float, p)) for p in re.findall(r"[ML]([\d.]+),([\d.]+)", svg.split("stroke")[0])]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.2)
    assert "from 1.000 at t = 0 to 2.000 at t = 1" in svg


def test_gaps_where_values_are_not_finite():
    svg = html_curve(np.linspace(0, 1, 5), np.array([1.0, np.nan, 2.0, np.inf, 3.0]), "loss")
    assert svg.split("stroke")[0].count("M") == 3
    assert "fewer than two" in html_curve(np.array([0.0, 1.0]), np.array([np.nan, 1.0]), "loss")


def test_a_profile_shows_its_curve_barriers_and_table():
    profile = Profile(np.array([0.0, 0.5, 1.0]), np.array([0.0, 2.0, 1.0]))
    html = profile._repr_html_()
    assert "<svg" in html and "chord_barrier 1.500" in html and "<table" in html
    assert "score" not in html
    assert "chord_barrier" not in Profile(np.array([0.0, 0.5]), np.array([0.0, 2.0]))._repr_html_()
