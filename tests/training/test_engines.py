"""What DeepSpeed and FSDP cannot do is refused by name, before anything is trained."""

from types import SimpleNamespace

import pytest

from mcanalysis.errors import UserError
from mcanalysis.strategies import get_strategy, make_strategy, strategy_names
from mcanalysis.training.engines import check_engine


def deepspeed(stage):
    return SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage), fsdp_plugin=None)


def fsdp(version):
    return SimpleNamespace(
        deepspeed_plugin=None, fsdp_plugin=SimpleNamespace(fsdp_version=version, ignored_modules=None)
    )


@pytest.mark.parametrize("name", strategy_names())
def test_each_strategy_under_zero_2(name, make_model):
    strategy, network = make_strategy(name, 0), make_model().network
    if get_strategy(name).edits_gradient:
        with pytest.raises(UserError, match=f"for {name}, got DeepSpeed"):
            check_engine(deepspeed(2), strategy, network)
    else:
        check_engine(deepspeed(2), strategy, network)
    with pytest.raises(UserError, match="got 3"):
        check_engine(deepspeed(3), strategy, network)


def test_fsdp_leaves_the_adapter_whole(make_model):
    model, state = make_model(), fsdp(2)
    check_engine(state, make_strategy("ilora", 0), model.network)
    left = {id(p) for m in state.fsdp_plugin.ignored_modules for p in m.parameters()}
    assert left == {id(p) for p in model.parameters.values()}
    with pytest.raises(UserError, match="FSDP version 2, got 1"):
        check_engine(fsdp(1), make_strategy("er", 0), model.network)
