"""Settings as a search would have chosen them."""

import pytest

from mcanalysis.benchmarks import get_benchmark
from mcanalysis.strategies import get_strategy, strategy_names
from mcanalysis.studies.claims.protocol import FULL
from mcanalysis.studies.tuned import Chosen, Tuned


@pytest.fixture(scope="session")
def tuned_with():
    def made(best="der", **settings):
        trained = [name for name in strategy_names() if get_strategy(name).schedule != "none"]
        chosen = {name: Chosen(1e-3, settings.get(name, {}), 0.5 + (name == best) / 10, None, 3) for name in trained}
        place = Tuned.place(FULL.base, get_benchmark("study").tasks)
        return Tuned("0", **place, trials=3, seeds=[100], strategies=chosen)

    return made
