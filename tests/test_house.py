"""`make house`: its numbers are those counted by hand, its picture is drawn, and the package has no circle."""

import doctest
import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "docs" / "house.py"
SMALL = {
    "mcanalysis/__init__.py": "from mcanalysis.upper.first import x\n",
    "mcanalysis/errors.py": "x = 1\n",
    "mcanalysis/upper/__init__.py": "'''Upper things: they stand on others.'''\n",
    "mcanalysis/upper/first.py": "import os\nfrom mcanalysis.lower import (\n    a,\n    b,\n)\n\nx = 1\n\n\n\n",
    "mcanalysis/lower/__init__.py": "'''Lower.'''\nfrom mcanalysis import errors\n",
    "tests/test_import_directions.py": "BELOW = {'lower': set(), 'errors': set()}\nBELOW['upper'] = set(BELOW)\n"
    "ANYWHERE, DOORS = {'errors'}, set()\nTREES = BELOW | unknown\n",
}


@pytest.fixture(scope="module")
def house():
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_numbers_are_those_counted_by_hand(house):
    rows = {line.split("  ")[0]: line.split()[-4:] for line in house.report(SMALL).splitlines()[:6]}
    assert rows["upper"] == ["11", "2", "6", "45.5%"]  # 10 lines and 1; 5 of them import
    assert rows["lower"] == ["2", "1", "2", "50.0%"]
    assert rows["(single files)"] == ["2", "2", "1", "50.0%"]
    assert rows["in all"] == ["15", "5", "1", "46.7%"]
    assert "imports that go up: 0 of 3" in house.report(SMALL)  # a, b and errors


def test_circles_and_imports_upwards_are_named(house):
    turned = SMALL | {"mcanalysis/lower/second.py": "def f():\n    from mcanalysis.upper import first\n"}
    said = house.report(turned)
    assert "circles of imports between folders: 1\n  lower, upper\n" in said
    assert said.endswith("imports that go up: 1 of 4\n  lower → upper")
    door = turned | {house.RULE: turned[house.RULE].replace("set()\nTREES", "{('lower', 'upper')}\nTREES")}
    assert "folders: 0\ndoors upwards, opened by a call: lower → upper\nimports that go up: 0 of 4" in house.report(
        door
    )


def test_of_three_imports_in_a_row_the_long_one_is_implied(house):
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert house.needed(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert house.floors(graph, graph) == {"a": 3, "b": 2, "c": 1, "d": 0}


def test_arrows_go_down_and_boxes_lie_beside_each_other(house):
    graph = {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set(), "e": {"d"}}
    drawing = house.Drawing(graph, {"a": 2, "b": 1, "c": 0, "d": 0, "e": 1})
    assert ["a", ("a", "d", 1), "d"] in drawing.chains
    for row in drawing.rows:
        boxes = sorted(drawing.x[node] for node in row if isinstance(node, str))
        assert all(right - left >= 1 for left, right in pairwise(boxes))
    assert drawing._crossings(drawing.rows) == 0


def test_the_package_has_no_circle_and_its_picture_is_drawn(tmp_path):
    command = [sys.executable, SCRIPT, "--picture", tmp_path / "house.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "\ncircles of imports between folders: 0\n" in done.stdout and "\nimports that go up: 0 of " in done.stdout
    assert (tmp_path / "house.png").read_bytes()[:4] == b"\x89PNG"


def test_another_revision_is_read_without_being_checked_out(house):
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True).returncode:
        pytest.skip("no git here")
    shown = subprocess.run(
        ["git", "show", "HEAD:mcanalysis/registry.py"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    files = house.sources("HEAD")
    assert files["mcanalysis/registry.py"] == shown.stdout and house.RULE in files
    with pytest.raises(SystemExit, match=r"error: .*no-such-revision"):
        house.sources("no-such-revision")


def test_its_examples_hold(house):
    failed, tried = doctest.testmod(house)
    assert not failed and tried >= 6
