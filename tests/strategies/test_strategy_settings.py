"""Names and settings: what is unknown or impossible is one line with the remedy, before anything runs."""

import pytest

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.strategies import get_strategy, make_strategy, strategy_names


def test_an_unknown_strategy_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'ilora'"):
        get_strategy("i-lora")


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
    ],
)
def test_impossible_settings_are_refused_by_name(strategy, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy(strategy, seed=0, **settings)


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
