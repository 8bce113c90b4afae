"""One registry finds the names in a folder, imports its files when first asked, and our own strategies one by one."""

import sys

import pytest

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.registry import Registry
from mcanalysis.strategies import _own, get_strategy, strategy_names


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two files with a `NAME`, one without and a folder."""
    folder = tmp_path / "named_things"
    (folder / "deeper").mkdir(parents=True)
    files = {
        "__init__": "",
        "first": "NAME = 'One'",
        "second": "NAME = 'Two'",
        "helper": "",
        "deeper/__init__": "1 / 0",
    }
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "named_things"
    for name in [n for n in sys.modules if n.partition(".")[0] == "named_things"]:
        del sys.modules[name]


def test_files_are_imported_when_first_asked_for(package):
    registry = Registry("thing", package, "NAME", remedy="Add one.")
    assert package not in sys.modules
    assert registry.names() == ["One", "Two"] and registry.get("Two") is sys.modules["named_things.second"]
    with pytest.raises(UnknownNameError) as error:
        registry.get("tow")
    assert str(error.value) == "Unknown thing 'tow'. Did you mean 'Two'? Expected one of: One, Two. Add one."


def test_what_is_added_is_known_beside_the_files_and_may_be_added_again(package):
    registry = Registry("thing", package, "NAME")
    registry.add("Three", 3)
    registry.add("Three", 4)
    assert registry.names() == ["One", "Three", "Two"] and registry.get("Three") == 4


def test_a_name_of_two_files_is_refused_however_often_it_is_asked_for(package, tmp_path):
    (tmp_path / package / "third.py").write_text("NAME = 'One'")
    registry = Registry("thing", package, "NAME")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Two files of named_things define the thing 'One'"):
            registry.names()


@pytest.mark.parametrize("name", strategy_names())
def test_a_strategy_of_ours_has_the_name_of_its_file(name):
    assert get_strategy(name).name == name and get_strategy(name).__module__ == f"mcanalysis.strategies.{name}"


def test_a_file_without_the_strategy_of_its_name_is_named():
    with pytest.raises(UserError, match=r"^Expected a strategy called strategy in .*/strategy\.py, got none"):
        _own("strategy")
