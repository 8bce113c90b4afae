"""Tables over strategies and seeds, and which settings go where."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.experiments.strategies import difference, study_configs, summary_table
from mcanalysis.training.config import RunConfig


def metrics(values):
    rows = []
    for (strategy, learner), per_seed in values.items():
        for seed, value in enumerate(per_seed):
            rows.append(
                {
                    "strategy": strategy,
                    "learner": learner,
                    "seed": seed,
                    "answers": True,
                    "average_accuracy": value,
                    "backward_transfer": -value,
                    "forgetting": value,
                    "learning_accuracy": 1.0,
                }
            )
    return pd.DataFrame(rows)


def test_difference_is_the_paired_t_interval():
    a, b = [0.9, 0.8, 0.95], [0.7, 0.75, 0.6]
    table = metrics({("ilora", "slow"): a, ("er", "fast"): b})
    mean, low, high = difference(table, ("ilora", "slow"), ("er", "fast"))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(a) - np.mean(b), expected.low, expected.high))


def test_one_seed_has_no_interval_and_no_common_seed_is_refused():
    table = metrics({("ilora", "slow"): [0.9], ("er", "fast"): [0.7]})
    mean, low, high = difference(table, ("ilora", "slow"), ("er", "fast"))
    assert mean == pytest.approx(0.2) and np.isnan(low) and np.isnan(high)
    with pytest.raises(UserError, match="run both"):
        difference(table, ("ilora", "fast"), ("er", "fast"))


def test_summary_is_over_seeds():
    row = summary_table(metrics({("er", "fast"): [0.5, 0.7]})).iloc[0]
    assert row.average_accuracy == pytest.approx(0.6)
    assert row.average_accuracy_sd == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert row.seeds == 2


def test_settings_go_to_the_strategies_that_have_them():
    configs = study_configs(RunConfig(), ["sequential", "er", "ilora"], [0, 1], {"memory_size": 30, "ema_decay": 0.5})
    assert [c.strategy for c in configs] == ["sequential", "er", "ilora"] * 2
    assert [dict(c.strategy_settings) for c in configs[:3]] == [
        {}, {"memory_size": 30}, {"memory_size": 30, "ema_decay": 0.5},
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="ema_decay"):
        study_configs(RunConfig(), ["sequential", "er"], [0], {"ema_decay": 0.5})
