"""Names and settings: what is unknown or impossible is one line with the remedy, before anything runs."""

import pytest

from mcanalysis.cli.run_flags import typed
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.strategies import get_strategy, make_strategy, strategy_names


def test_an_unknown_strategy_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'ilora'"):
        get_strategy("i-lora")


@pytest.mark.parametrize(
    ("name", "why"), [("sapt", "for each input"), ("moe_lora", "for each input"), ("tree_lora", "yet")]
)
def test_strategies_that_are_left_out_are_refused_with_the_reason(name, why):
    with pytest.raises(UserError, match=rf"got {name}, which .*{why}.*; choose another"):
        get_strategy(name)


def test_values_of_settings_are_read_as_people_write_them():
    """YAML 1.1 takes 010 for eight and 1:30 for ninety, and None for a text."""
    read = {
        "a": "010",
        "b": "1:30",
        "c": "None",
        "d": "none",
        "e": "null",
        "f": "1e5",
        "g": "-3",
        "h": "0.5",
        "i": "yes",
    }
    read |= {"j": "word", "k": "9" * 5000}
    found = typed(read)
    assert found == {"a": 10, "b": "1:30", "c": None, "d": None, "e": None, "f": 1e5, "g": -3, "h": 0.5, "i": True,
                     "j": "word", "k": "9" * 5000}  # fmt: skip


def test_an_unknown_setting_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'ema_decay'"):
        make_strategy("ilora", seed=0, ema_decy=0.9)


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("ilora", {"ema_decay": 1.5}),
        ("ilora", {"ema_decay": -0.1}),
        ("ilora", {"consistency_form": "both"}),
        ("ilora", {"answering": "both"}),
        ("ilora", {"consistency_weight": -1.0}),
        ("ilora", {"consistency_layers": 0}),
        ("ilora", {"memory_size": 0}),
        ("er", {"memory_size": 0}),
        ("er", {"memory_size": -3}),
        ("er", {"memory_size": 1.5}),
    ],
)
def test_impossible_settings_are_refused_by_name(strategy, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy(strategy, seed=0, **settings)


@pytest.mark.parametrize(
    ("strategy", "setting", "value", "expected"),
    [
        ("er", "memory_size", "x", "a number"),
        ("er", "memory_size", True, "a number"),
        ("gem", "memory_per_task", 1.5, "a whole number"),
        ("er", "replay_from_first_step", "maybe", "true or false"),
        ("ilora", "warm_up", 0, "true or false"),
        ("ilora", "ema_decay", "x", "a number"),
        ("ilora", "consistency_layers", "x", "a whole number or none"),
        ("lwf", "alpha", True, "a number"),
        ("merge", "rank", 1.5, "a whole number or none"),
        ("merge", "method", "mean", "average or task_arithmetic or ties"),
    ],
)
def test_settings_of_another_type_are_refused_with_what_fits(strategy, setting, value, expected):
    with pytest.raises(UserError, match=f"^Expected {expected} for {setting} of {strategy}, got {value!r}"):
        make_strategy(strategy, seed=0, **{setting: value})


def test_numbers_are_taken_as_what_the_setting_is():
    config = make_strategy("er", seed=0, memory_size=1e2).config
    assert config.memory_size == 100 and type(config.memory_size) is int
    config = make_strategy("ewc", seed=0, ewc_lambda=3).config
    assert type(config.ewc_lambda) is float
    assert make_strategy("merge", seed=0, rank=None).config.rank is None
    with pytest.raises(UserError, match="Expected no settings of sequential"):
        make_strategy("sequential", seed=0, memory_size=3)


@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_says_where_it_comes_from(name):
    kind = get_strategy(name)
    assert kind.name == name
    assert kind.reference
    assert "fast" in kind.learners or name in ("zero_shot", "l2p", "progressive_prompts")
    assert kind(kind.config_class(), 0).answering_learner in kind.learners


def test_published_defaults():
    config = get_strategy("ilora").config_class()
    assert (config.ema_decay, config.consistency_weight, config.memory_size) == (0.95, 1.0, 500)
    assert (config.reset_at_task, config.answering, config.consistency_form) == (False, "slow", "two_sided")
    assert config.consistency_layers is None
    assert config.replay_from_first_step is False


def test_a_setting_newer_than_stored_runs_is_in_no_manifest_at_its_old_value(run_config):
    """Else a run of before would be that of another configuration, and would not be served or gone on with."""
    before = {"threshold_start": 0.95, "threshold_end": 1.0, "num_covariance_examples": None}
    assert run_config("inflora").resolved()["strategy_settings"] == before
    changed = run_config("inflora", strategy_settings={"design": "random"}).resolved()
    assert changed["strategy_settings"] == {**before, "design": "random"}
    assert make_strategy("inflora", 0, **before).config.design == "covariance"


def test_an_ablation_of_such_a_setting_knows_the_value_of_the_base():
    from mcanalysis.studies.ablations import Ablations
    from mcanalysis.training.config import RunConfig

    study = Ablations(strategy="inflora", seed=(0,), varied={"design": ["covariance", "random"]})
    names = [v.name for v in study.variants(RunConfig(strategy="inflora"))]
    assert names == ["base-seed0", "design-random-seed0"]
