"""A flag given twice, or beside a `--config` block: pairs are put together, two values for one thing are refused."""

import sys

import pytest

from mcanalysis.cli.flags import Parser
from mcanalysis.cli.run_flags import add_run_flags


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(script, tmp_path):
    """refused(script, *flags, pieces=…): one line with these pieces, exit code 2, nothing written."""

    def check(name, *flags, pieces):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = script(name, *flags)
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
        for piece in pieces:
            assert piece in err, err
        assert sorted(tmp_path.rglob("*")) == before

    return check


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """parsed(*flags, yaml=None) -> what train.py's flags and analyses' `--run` come to."""

    def parse(*flags, yaml=None):
        parser = Parser("a script")
        add_run_flags(parser)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--run", action="append")
        if yaml is not None:
            (tmp_path / "c.yaml").write_text(yaml)
            flags = ("--config", str(tmp_path / "c.yaml"), *flags)
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, flags)])
        return parser.parse()

    return parse


@pytest.mark.parametrize("flag", ["settings", "scores"])
def test_pairs_of_several_flags_and_of_a_block_are_put_together(parsed, flag):
    def pairs(*flags, yaml=None):
        return getattr(parsed(*flags, yaml=yaml), flag)

    assert pairs() == {}
    assert pairs(f"--{flag}", "a=1", f"--{flag}", "b=2,c=3") == {"a": "1", "b": "2", "c": "3"}
    assert pairs(f"--{flag}", "a=1,a=1", f"--{flag}=a=1") == {"a": "1"}
    block = f"{flag}: {{a: x, b: y}}\n"
    assert pairs(yaml=block) == {"a": "x", "b": "y"}
    assert pairs(f"--{flag}", "b=2", f"--{flag}", "c=3", yaml=block) == {"a": "x", "b": "2", "c": "3"}
    assert pairs(f"--{flag}", "b=2", yaml=f"{flag}: 'a=x,b=y'\n") == {"a": "x", "b": "2"}
    assert pairs(f"--{flag}", "b=2", yaml=f"{flag}: null\n") == {"b": "2"}


def test_numbers_booleans_and_anchors_in_a_block(parsed):
    text = "scores: &s {A: rouge_l}\nsettings: {a: 1e-2, b: true, c: null, d: 0.5, e: 7}\n"
    assert parsed(yaml=text).settings == {"a": "1e-2", "b": "true", "c": "null", "d": "0.5", "e": "7"}
    assert parsed(yaml="scores: &s {A: x, B: y}\nsettings:\n  <<: *s\n  B: z\n").settings == {"A": "x", "B": "z"}


def test_what_was_given_is_forgotten_by_the_next_command_line(parsed):
    assert parsed("--seed", 1, "--settings", "a=1").seed == 1
    args = parsed("--seed", 2, "--settings", "a=2")
    assert args.seed == 2 and args.settings == {"a": "2"}
    assert parsed().settings == {}


def test_a_repeatable_flag_overrides_the_files_list(parsed):
    assert parsed("--run", "a", "--run", "b").run == ["a", "b"]
    assert parsed(yaml="run: [x, y]\n").run == ["x", "y"]
    assert parsed("--run", "a", "--run", "b", yaml="run: [x, y]\n").run == ["a", "b"]


@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        (("--settings", "ema_decay=0.9", "--settings", "ema_decay=0.95"),
         ("Expected ema_decay once in --settings, got 0.9 and 0.95; leave one out.",)),
        (("--settings", "ema_decay=0.9,ema_decay=0.95"), ("Expected ema_decay once in --settings, got 0.9 and 0.95",)),
        (("--settings", "ema_decy=0.9", "--settings", "ema_decay=0.95"), ("ema_decy", "Did you mean 'ema_decay'?")),
        (("--scores", "FOMC=rouge_l", "--scores", "FOMC=exact_match"),
         ("Expected FOMC once in --scores, got rouge_l and exact_match; leave one out.",)),
        (("--scores", "FOMCC=rouge_l", "--scores", "FOMC=exact_match"), ("FOMCC", "Did you mean 'FOMC'?")),
        (("--settings", "=0.9"), ("NAME=VALUE", "'=0.9'")),
        (("--settings", "memory_size={"), ("memory_size", "'{'")),
        (("--seed", 1, "--seed", 2), ("Expected --seed once, got 1 and 2; leave one out.",)),
        (("--tasks", "FOMC", "--tasks", "MedMCQA,JEC-QA"), ("Expected --tasks once, got FOMC and MedMCQA,JEC-QA",)),
        (("--num-test", "all", "--num-test", 5), ("Expected --num-test once, got all and 5",)),
        (("--group-by-length", "--no-group-by-length"), ("Expected --group-by-length once",)),
        (("--config", "a.yaml", "--config", "b.yaml"), ("Expected --config once, got a.yaml and b.yaml",)),
    ],
)  # fmt: skip
def test_two_values_and_misspelt_names_are_refused(refused, flags, pieces):
    refused("train", *flags, pieces=pieces)


def test_the_same_value_twice_is_one_value(script):
    twice = ("--seed", 1, "--tasks", "FOMC", "--settings", "ema_decay=0.9", "--scores", "FOMC=exact_match") * 2
    code, out, err = script("train", "--dry-run", "--num-train", 4, "--num-test", 2, *twice)
    assert code == 0 and "FOMC" in out, err


@pytest.mark.parametrize(
    ("text", "flags", "pieces"),
    [
        ("settings: {ema_decy: 0.9}\n", ("--settings", "ema_decay=0.95"), ("ema_decy", "Did you mean 'ema_decay'?")),
        ("scores: {FOMCC: rouge_l}\n", ("--scores", "FOMC=rouge_l"), ("FOMCC", "Did you mean 'FOMC'?")),
        ("settings:\n  ema_decay: 0.9\n  ema_decay: 0.95\n", (), ("each setting once", "settings.ema_decay twice")),
        ("settings: 'ema_decay=0.9,ema_decay=0.95'\n", (), ("Expected ema_decay once in settings, got 0.9 and 0.95",)),
        ("settings: [ema_decay, 0.9]\n", (), ("a block of `name: value` for settings", "['ema_decay', 0.9]")),
        ("settings: 0.9\n", (), ("for settings", "0.9")),
        ("settings: true\n", (), ("for settings", "True")),
        ("settings: {ema_decay: null}\n", (), ("ema_decay", "None")),
        ("settings: {ema_decay: {a: 1}}\n", (), ("ema_decay", "{'a': 1}")),
        ("settings: {ema_decay: [0.9, 0.95]}\n", (), ("ema_decay", "[0.9, 0.95]")),
        ("settings: {ema_decay: true}\n", (), ("ema_decay", "True")),
        ("settings: {ema_decay: 2020-01-01}\n", (), ("for settings",)),
        ("settings: *nowhere\n", (), ("YAML", "nowhere")),
        ("tasks: {FOMC: 1}\n", (), ("for tasks", "{'FOMC': 1}")),
        ("seed: 1\nseed: 2\n", (), ("seed twice",)),
        ("\xff\xfe\x00", (), ("c.yaml",)),
        ("0\n", (), ("settings by name", "int")),
    ],
)
def test_a_configuration_file_says_each_thing_once_and_in_its_form(refused, tmp_path, text, flags, pieces):
    (tmp_path / "c.yaml").write_text(text, encoding="latin-1")
    refused("train", "--config", "c.yaml", *flags, pieces=pieces)


@pytest.mark.parametrize("seeds", ["[1.5]", "[0, true]"])
def test_numbers_of_a_list_are_whole(refused, tmp_path, seeds):
    (tmp_path / "c.yaml").write_text(f"seed: {seeds}\n")
    refused("compare", "--config", "c.yaml", pieces=("for seed",))


def test_settings_of_several_strategies(refused):
    """One that some of them have is taken by those; one that none has is refused."""
    from mcanalysis.studies.strategies import study_configs
    from mcanalysis.training.config import RunConfig

    configs = study_configs(RunConfig(), ["sequential", "ilora"], [0], {"ema_decay": 0.9})
    assert [dict(c.strategy_settings) for c in configs] == [{}, {"ema_decay": 0.9}]
    two = ("--strategy", "sequential,ilora", "--settings", "memory_size=9")
    refused("connectivity", *two, "--settings", "ema_decy=0.9", pieces=("ema_decy", "Did you mean 'ema_decay'?"))
    refused("compare", *two, "--settings", "ilora.ema_decy=0.9", pieces=("of ilora", "Did you mean 'ema_decay'?"))
    refused("compare", *two, "--settings", "irola.ema_decay=0.9", pieces=("irola", "Did you mean 'ilora'?"))


@pytest.mark.parametrize("flag", ["--settings=ema_decay=0.9", "--scores=FOMC=accuracy", "--max-new-tokens=FOMC=4"])
def test_what_finished_runs_do_not_look_at_is_refused(refused, flag):
    refused("connectivity", "--run", "nowhere", flag, pieces=[f"Expected {flag.split('=')[0]} with runs that"])
