"""The protocol of the study: pairs that share nothing, one budget, settings of the search, names that do not meet."""

import pytest

from mcanalysis.errors import UserError
from mcanalysis.strategies import make_strategy
from mcanalysis.studies.claims.protocol import FULL, NO_RIVALS, QUICK, Change, best_other
from mcanalysis.studies.comparison import Comparison


def part(name, protocol=FULL):
    return next(part for part in protocol.parts if part.name == name)


def test_no_two_runs_of_a_strategy_share_a_seed_or_an_order(tuned_with):
    planned = FULL.planned(part("main"), tuned_with())
    assert len(planned) == 60
    for strategy in ("sequential", "er", "ilora", "der"):
        of = [p.config for p in planned if p.config.strategy == strategy]
        assert len({c.seed for c in of}) == len({c.order for c in of}) == len(of) == 15
    assert {(p.pair, p.config.seed, p.config.order) for p in planned} == {
        (n, n, f"shuffled{n}" if n else "paper") for n in range(15)
    }


def test_the_best_other_has_the_highest_score_of_the_search_and_is_no_bound(tuned_with):
    assert best_other(tuned_with("sure")) == "sure"
    for name in NO_RIVALS:
        assert best_other(tuned_with(name)) not in NO_RIVALS
    only = tuned_with()
    for name in set(only.strategies) - set(NO_RIVALS):
        del only.strategies[name]
    with pytest.raises(UserError, match="more strategies"):
        best_other(only)


def test_others_are_all_that_are_not_in_the_main_part(tuned_with):
    tuned = tuned_with("sure")
    of = {name: {p.config.strategy for p in FULL.planned(part(name), tuned)} for name in ("main", "others")}
    assert of["main"] == {"sequential", "er", "ilora", "sure"}
    assert of["main"] | of["others"] == set(tuned.strategies) and not of["main"] & of["others"]


def test_every_memory_is_one_budget_and_what_was_given_counts_for_more_than_what_was_chosen(tuned_with):
    tuned = tuned_with(er={"memory_size": 7}, ilora={"ema_decay": 0.5})
    for name in ("main", "others"):
        for planned in FULL.planned(part(name), tuned):
            config = make_strategy(planned.config.strategy, 0, **planned.config.strategy_settings).config
            assert getattr(config, "memory_size", 100) == 100
            assert 8 * getattr(config, "memory_per_task", 12) <= 100
            assert planned.config.training.learning_rate == 1e-3
    ilora = next(p for p in FULL.planned(part("main"), tuned) if p.config.strategy == "ilora")
    assert ilora.config.strategy_settings["ema_decay"] == 0.5


def test_a_change_is_all_that_tells_its_run_from_the_main_one(tuned_with):
    tuned = tuned_with()
    main = {(p.pair, p.config.strategy): p.config for p in FULL.planned(part("main"), tuned)}
    seen = set()
    for name in ("ilora", "memory", "scale", "bases"):
        for planned in FULL.planned(part(name), tuned):
            usual, changed = main[planned.pair, planned.config.strategy].resolved(), planned.config.resolved()
            seen.add((planned.label, *sorted(key for key in usual if usual[key] != changed[key])))
    assert ("rank2", "lora_alpha", "lora_rank") in seen
    assert ("rate-triple", "training") in seen and ("memory25", "strategy_settings") in seen
    assert ("large", "model") in seen  # the rate stays that of the embedded base
    assert Change(rate_factor=1 / 3).applied(main[0, "er"]).training.learning_rate == pytest.approx(1e-3 / 3, rel=1e-3)


def test_files_of_different_runs_never_meet(tuned_with):
    for protocol in (FULL, QUICK):
        planned = [p for one in protocol.parts for p in protocol.planned(one, tuned_with())]
        assert len({(p.folder, p.name) for p in planned}) == len(planned)


def test_unchanged_runs_are_those_of_compare_tuned(tmp_path, tuned_with):
    tuned = tuned_with()
    tuned.write(tmp_path / "tuned.yaml")
    comparison = Comparison(
        strategy=("er", "ilora"), seed=(1,), order=("shuffled1",), tuned=str(tmp_path / "tuned.yaml")
    )
    compared = comparison.configs(FULL.base, {"memory_size": 100})
    planned = [p.config for p in FULL.planned(part("main"), tuned) if p.pair == 1]
    assert [c.resolved() for c in compared] == [c.resolved() for c in planned if c.strategy in ("er", "ilora")]


def test_prompts_and_bounds_have_nothing_measured_between_minima(tuned_with):
    others = FULL.planned(part("others"), tuned_with())
    assert {p.config.strategy for p in others if not p.measured} == {
        "l2p", "progressive_prompts", "joint"
    }  # fmt: skip
