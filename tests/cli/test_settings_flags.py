"""Flags from the fields of a settings class: each type from the command line, from YAML, by default, and when wrong."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

import pytest
import yaml
from jsonschema import Draft202012Validator

from mcanalysis.cli.flags import Parser
from mcanalysis.cli.running import run_script
from mcanalysis.cli.schema import config_schema
from mcanalysis.settings import OR_ALL, Flag


@dataclass(frozen=True)
class Baking:
    """Settings with a field of each type."""

    loaves: Annotated[int, "how many"] = 3
    heat: Annotated[float, "degrees, 95 % of the time", Flag(name="oven-heat", metavar="DEGREES")] = 220.5
    flour: Annotated[str, "which"] = "rye"
    steam: Annotated[bool, "at the start"] = False
    lid: Annotated[bool, "on the pot"] = True
    crust: Annotated[Literal["thin", "thick"] | None, "of the loaf"] = None
    rises: Annotated[int | None, "times that it rises, or 'all'", OR_ALL] = 2
    baker: Annotated[str | None, "who bakes"] = None
    seeds: Annotated[tuple[str, ...], "on top"] = ("poppy", "flax")
    turns: Annotated[tuple[int, ...] | None, "minutes"] = None
    shares: Annotated[tuple[float, ...], "of the dough"] = ()
    labels: Annotated[Mapping[str, str], "of loaves"] = field(default_factory=dict)
    weights: Annotated[Mapping[str, int], "grams of a loaf"] = field(default_factory=dict)
    secret: int = 7


@pytest.fixture
def baked(monkeypatch, tmp_path):
    """baked(*flags, yaml=None, others={}, **add_settings) -> the settings that these flags come to."""

    def bake(*flags, yaml=None, others=None, **adding):
        parser = Parser("a bakery")
        parser.add_settings(Baking, **adding)
        if yaml is not None:
            (tmp_path / "c.yaml").write_text(yaml)
            flags = ("--config", str(tmp_path / "c.yaml"), *flags)
        monkeypatch.setattr(sys, "argv", ["bake.py", *map(str, flags)])
        return parser.settings(Baking, parser.parse(), **(others or {}))

    return bake


@pytest.fixture
def refused(baked, capsys):
    """refused(*flags, yaml=None) -> the one line that ends the script with exit code 2."""

    def refuse(*flags, yaml=None):
        with pytest.raises(SystemExit) as end:
            run_script(lambda: baked(*flags, yaml=yaml))
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: "), err
        return err

    return refuse


# What to write, on the command line and in YAML, and the value it stands for.
WRITTEN = [
    ("loaves", ["--loaves", "4"], "loaves: 4", 4),
    ("heat", ["--oven-heat", "1e2"], "oven-heat: 1e2", 100.0),
    ("heat", ["--oven-heat=-3"], "oven_heat: -3", -3.0),
    ("flour", ["--flour", "12"], "flour: 12", "12"),
    ("steam", ["--steam"], "steam: true", True),
    ("steam", ["--no-steam"], "steam: false", False),
    ("lid", ["--lid"], "lid: yes", True),
    ("lid", ["--no-lid"], "lid: no", False),
    ("crust", ["--crust", "thin"], "crust: thin", "thin"),
    ("rises", ["--rises", "5"], "rises: 5", 5),
    ("rises", ["--rises", "all"], "rises: all", None),
    ("baker", ["--baker", "Ann"], "baker: Ann", "Ann"),
    ("seeds", ["--seeds", "a, b"], "seeds: [a, b]", ("a", "b")),
    ("seeds", ["--seeds", "a"], "seeds: a", ("a",)),
    ("turns", ["--turns", "5,10"], "turns: [5, 10]", (5, 10)),
    ("shares", ["--shares", "0.5,1e-1"], "shares: [0.5, 1e-1]", (0.5, 0.1)),
    ("labels", ["--labels", "a=x,b=y"], "labels: {a: x, b: y}", {"a": "x", "b": "y"}),
    ("labels", ["--labels", "a=x", "--labels", "b=y"], "labels: a=x,b=y", {"a": "x", "b": "y"}),
    ("weights", ["--weights", "a=500"], "weights: {a: 500}", {"a": 500}),
    ("weights", ["--weights", "500"], "weights: 500", {"": 500}),
]


@pytest.mark.parametrize(("name", "flags", "yaml", "value"), WRITTEN)
def test_a_value_of_each_type(baked, name, flags, yaml, value):
    for made in (baked(*flags), baked(yaml=yaml), baked(*flags, yaml="loaves: 9" if name != "loaves" else "rises: 9")):
        found = getattr(made, name)
        assert found == value and type(found) is type(value)


def test_without_flags_it_is_the_class_with_its_defaults(baked):
    assert baked() == Baking()
    assert baked(yaml="") == Baking()


def test_yaml_null_is_the_default(baked):
    names = [f.name for f in fields(Baking) if f.name not in ("secret", "heat")] + ["oven-heat"]
    assert baked(yaml="".join(f"{name}: null\n" for name in names)) == Baking()
    assert baked(yaml="loaves: null", defaults={"loaves": 8}).loaves == 8


def test_flags_are_over_yaml_is_over_defaults(baked):
    both = baked("--loaves", 5, yaml="loaves: 4\nflour: oat", defaults={"flour": "spelt", "heat": 180.0, "baker": "B"})
    assert (both.loaves, both.flour, both.heat, both.baker) == (5, "oat", 180.0, "B")
    block = "labels: {a: x, b: y}"
    assert baked("--labels", "b=z", "--labels", "c=w", yaml=block).labels == {"a": "x", "b": "z", "c": "w"}
    assert baked("--weights", "b=1", yaml="weights: {a: 2, b: 3}").weights == {"a": 2, "b": 1}


def test_other_fields_and_fields_left_out(baked):
    made = baked("--loaves", 5, leave_out=["flour", "rises"], others={"secret": 1, "loaves": 6})
    assert made == Baking(loaves=6, secret=1)
    assert baked("--flour", "oat", only=["flour"]) == Baking(flour="oat")


def test_a_default_of_none_tells_that_nothing_was_given(monkeypatch):
    parser = Parser(None)
    parser.add_settings(Baking, defaults={"loaves": None, "rises": None})
    monkeypatch.setattr(sys, "argv", ["bake.py"])
    args = parser.parse()
    assert args.loaves is None and parser.settings(Baking, args).loaves == 3
    assert args.rises is None and parser.settings(Baking, args).rises is None, "None is a value of this one"
    assert "how many (default: 3)" in " ".join(parser.format_help().split())


def test_help_shows_each_help_and_default_once(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    parser = Parser(None)
    parser.add_settings(Baking, group="baking", leave_out=["labels"])
    before, _, shown = parser.format_help().partition("\nbaking:\n")
    assert before.count("--loaves") == 1, "in the usage alone"
    lines = [" ".join(line.split()) for line in shown.replace("\n                        ", "  ").strip().splitlines()]
    assert lines == [
        "--loaves N how many (default: 3)",
        "--oven-heat DEGREES degrees, 95 % of the time (default: 220.5)",
        "--flour FLOUR which (default: rye)",
        "--steam, --no-steam at the start",
        "--lid, --no-lid on the pot (default: True)",
        "--crust {thin,thick} of the loaf",
        "--rises N times that it rises, or 'all' (default: 2)",
        "--baker BAKER who bakes",
        "--seeds A,B on top (default: poppy,flax)",
        "--turns N,M minutes",
        "--shares N,M of the dough",
        "--weights NAME=VALUE grams of a loaf",
    ]


@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        (["--loaves", "many"], ("--loaves", "many")),
        (["--loaves", "all"], ("--loaves", "all")),
        (["--rises", "some"], ("--rises", "some")),
        (["--crust", "burnt"], ("--crust", "burnt", "thin")),
        (["--turns", "5,x"], ("--turns", "5,x")),
        (["--shares", ","], ("--shares", "','")),
        (["--labels", "x"], ("--labels", "NAME=VALUE")),
        (["--loave", "2"], ("--loave", "did you mean --loaves?")),
        (["--heat", "2"], ("--heat",)),
        (["--secret", "2"], ("--secret",)),
        (["--loaves", "2", "--loaves", "3"], ("Expected --loaves once, got 2 and 3",)),
        (["--rises", "2", "--rises", "all"], ("Expected --rises once, got 2 and all",)),
        (["--seeds", "a,b", "--seeds", "c"], ("Expected --seeds once, got a,b and c",)),
        (["--steam", "--no-steam"], ("Expected --steam once",)),
        (["--labels", "a=x", "--labels", "a=y"], ("Expected a once in --labels, got x and y",)),
        (["--weights", "a=1,a=2"], ("Expected a once in --weights, got 1 and 2",)),
        (["--config", "nowhere.yaml"], ("nowhere.yaml", "No such file")),
    ],
)
def test_a_wrong_flag_is_one_line(refused, flags, pieces):
    said = refused(*flags)
    assert all(piece in said for piece in pieces), said


WRONG = [
    ("- loaves\n", ("settings by name", "list")),
    ("loaves: [2]", ("a whole number for loaves", "[2]")),
    ("loaves: 2.5", ("a whole number for loaves", "2.5")),
    ("loaves: true", ("a whole number for loaves", "True")),
    ("oven-heat: warm", ("a number for oven-heat", "warm")),
    ("steam: 1", ("for steam", "1")),
    ("crust: burnt", ("for crust", "burnt", "thin, thick")),
    ("turns: [1.5]", ("for turns", "[1.5]")),
    ("shares: [half]", ("for shares", "['half']")),
    ("seeds: []", ("for seeds", "[]")),
    ("labels: 3", ("for labels", "3")),
    ("labels: {a: x, a: y}", ("labels.a twice",)),
    ("weights: {a: x}", ("for weights", "'x'")),
    ("flour: {a: x}", ("for flour",)),
    ("loave: 2", ("Unknown setting", "Did you mean 'loaves'?")),
    ("heat: 2", ("Unknown setting", "'heat'")),
    ("secret: 2", ("Unknown setting", "'secret'")),
    ("loaves: 2\nloaves: 3", ("loaves twice",)),
    ("oven_heat: 2\noven-heat: 3", ("oven_heat twice",)),
    (": : :", ("YAML", "--config")),
]


@pytest.mark.parametrize(("yaml", "pieces"), WRONG)
def test_a_wrong_configuration_file_is_one_line(refused, yaml, pieces):
    said = refused(yaml=yaml)
    assert all(piece in said for piece in pieces), said


def test_the_schema_takes_what_the_parser_reads_and_nothing_else():
    parser = Parser("a bakery")
    parser.add_settings(Baking)
    schema = Draft202012Validator(config_schema(parser))
    for _, _, text, _ in WRITTEN:
        values = yaml.safe_load(text)
        assert schema.is_valid(values) and schema.is_valid(dict.fromkeys(values)), text  # null is the default
    of_yaml_itself = {text for text, pieces in WRONG if "twice" in pieces[0] or pieces[0] == "YAML"}
    for text in {text for text, _ in WRONG} - of_yaml_itself:
        assert not schema.is_valid(yaml.safe_load(text)), text
    assert not schema.is_valid({"rises": "some"}) and not schema.is_valid({"help": True})


def test_mistakes_of_the_programmer():
    @dataclass
    class Odd:
        when: Annotated[complex, "?"] = 0j

    with pytest.raises(TypeError, match="complex"):
        Parser(None).add_settings(Odd)
    for adding in ({"only": ["salt"]}, {"leave_out": ["salt"]}, {"defaults": {"salt": 1}}, {"only": ["secret"]}):
        with pytest.raises(TypeError, match="Baking has no flag for s"):
            Parser(None).add_settings(Baking, **adding)


def test_a_field_without_default_is_asked_for_by_the_class(monkeypatch):
    @dataclass
    class Needed:
        name: Annotated[str, "whose"]

    parser = Parser(None)
    parser.add_settings(Needed)
    monkeypatch.setattr(sys, "argv", ["x.py", "--name", "Ann"])
    assert parser.settings(Needed, parser.parse()) == Needed("Ann")
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(TypeError, match="name"):
        parser.settings(Needed, parser.parse())
