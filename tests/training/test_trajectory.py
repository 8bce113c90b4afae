"""Snapshots of a task's training: where the learners stood, at no cost to the training, whole after a stop."""

import logging
import math

import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.params.ema import ema_decay_at
from mcanalysis.runs.snapshots import read_snapshot, snapshot_files
from mcanalysis.strategies import get_strategy, strategy_names
from mcanalysis.training import trajectory
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.stopping import Stopped
from mcanalysis.training.trajectory import TrajectoryWriter

NUM_STEPS = 5


@pytest.fixture(scope="module")
def two_tasks(make_tasks):
    return make_tasks(("zeta", "alpha"), num_train=10, num_test=2)


def trajectory_bytes(directory):
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.glob("trajectory/*/*/*"))}


@pytest.fixture(scope="module")
def ilora(run_config, two_tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ilora") / "run"
    execution = Execution(save_trajectory=1)
    train(run_config("ilora", num_steps=NUM_STEPS), folder, device="cpu", tasks=two_tasks, execution=execution)
    return folder


def test_the_slow_learner_is_the_average_of_the_fast_one_step_by_step(ilora):
    """The oracle recomputes slow from the snapshots of fast alone: λ_k·slow + (1−λ_k)·fast, λ_k = min(1−1/(k+1), λ)."""
    slow, k = None, 0
    for label in ("1-zeta", "2-alpha"):
        fast_files, slow_files = (snapshot_files(ilora, label, learner) for learner in ("fast", "slow"))
        assert list(fast_files) == list(slow_files) == list(range(NUM_STEPS + 1))
        slow = slow or read_snapshot(fast_files[0])  # a copy of fast at the start
        for step in range(1, NUM_STEPS + 1):
            k += 1
            fast, decay = read_snapshot(fast_files[step]), ema_decay_at(k, 0.95)
            assert decay == min(1 - 1 / (k + 1), 0.95)
            slow = {name: decay * slow[name] + (1 - decay) * fast[name] for name in fast}
            for name, tensor in read_snapshot(slow_files[step]).items():
                torch.testing.assert_close(tensor, slow[name], rtol=1e-5, atol=1e-7)


def test_a_trajectory_goes_from_minimum_to_minimum(ilora):
    for learner in ("fast", "slow"):
        minima = {k: load_adapter(ilora / "minima" / k / learner).point for k in ("1-zeta", "2-alpha")}
        for label, minimum in minima.items():
            end = read_snapshot(snapshot_files(ilora, label, learner)[NUM_STEPS])
            assert all(torch.equal(end[name], minimum[name]) for name in minimum)
        start = read_snapshot(snapshot_files(ilora, "2-alpha", learner)[0])
        assert all(torch.equal(start[name], tensor) for name, tensor in minima["1-zeta"].items())
    fresh = read_snapshot(snapshot_files(ilora, "1-zeta", "fast")[0])
    assert all(not t.any() for name, t in fresh.items() if ".lora_B." in name)


def test_snapshots_every_second_step_and_the_last_and_none_when_off(run_config, two_tasks, adapter_bytes, tmp_path):
    config = run_config("er", num_steps=NUM_STEPS)
    train(config, tmp_path / "off", device="cpu", tasks=two_tasks, execution=Execution(save_trajectory=0))
    assert not (tmp_path / "off" / "trajectory").exists()
    train(config, tmp_path / "on", device="cpu", tasks=two_tasks, execution=Execution(save_trajectory=2))
    assert list(snapshot_files(tmp_path / "on", "2-alpha", "fast")) == [0, 2, 4, 5]
    # training is not changed, nor is what identifies the run
    assert adapter_bytes(tmp_path / "on") == adapter_bytes(tmp_path / "off")
    assert not train(config, tmp_path / "on", device="cpu", tasks=two_tasks)


def test_unasked_a_small_adapter_has_snapshots_and_a_large_one_has_none(
    run_config, two_tasks, monkeypatch, tmp_path, caplog
):
    config, how = run_config("er", num_steps=NUM_STEPS), Execution()
    monkeypatch.setattr(trajectory, "EVERY", 3)
    train(config, tmp_path / "small", device="cpu", tasks=two_tasks, execution=how)
    assert list(snapshot_files(tmp_path / "small", "2-alpha", "fast")) == [0, 3, 5]
    monkeypatch.setattr(trajectory, "SMALL", 100)
    train(config, tmp_path / "large", device="cpu", tasks=two_tasks, execution=how)
    train(run_config("l2p", num_steps=1), tmp_path / "prompts", device="cpu", tasks=two_tasks, execution=how)
    assert not (tmp_path / "large/trajectory").exists() and not (tmp_path / "prompts/trajectory").exists()
    assert "no trajectory" not in caplog.text  # nobody asked for one


@pytest.mark.parametrize(
    "steps", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, NUM_STEPS, NUM_STEPS + 2))]
)
def test_a_stopped_run_ends_with_the_very_same_snapshots(ilora, run_config, two_tasks, stop_after, steps, tmp_path):
    config, how = run_config("ilora", num_steps=NUM_STEPS), Execution(save_trajectory=1)
    with pytest.raises(Stopped):
        train(config, tmp_path, device="cpu", tasks=two_tasks, execution=how, progress=stop_after(steps))
    train(config, tmp_path, device="cpu", tasks=two_tasks, execution=how, resume=True)
    assert trajectory_bytes(tmp_path) == trajectory_bytes(ilora)


def test_a_kill_while_a_snapshot_is_written_leaves_the_old_one_and_resuming_completes_it(
    ilora, run_config, two_tasks, monkeypatch, tmp_path
):
    from mcanalysis.store import atomic

    class Killed(BaseException):
        pass

    written = []

    def replaced(self, target):
        written.append(target)
        if target.name == "3.safetensors":
            raise Killed
        return rename(self, target)

    rename = atomic.Path.replace
    config, how = run_config("ilora", num_steps=NUM_STEPS), Execution(save_trajectory=1, save_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(atomic.Path, "replace", replaced)
        with pytest.raises(Killed):
            train(config, tmp_path, device="cpu", tasks=two_tasks, execution=how)
    assert list(snapshot_files(tmp_path, "1-zeta", "fast")) == [0, 1, 2]
    train(config, tmp_path, device="cpu", tasks=two_tasks, execution=how, resume=True)
    assert trajectory_bytes(tmp_path) == trajectory_bytes(ilora)
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


# joint trains all tasks in one stage; the others are those whose learners are not simply the trained adapter
@pytest.mark.parametrize(
    "name",
    [
        "cls_er",
        "slao",
        "joint",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mc_sgd", "merge", "o_lora", "inflora", "individual")),
    ],
)
def test_every_lora_strategy_has_a_trajectory_that_ends_at_its_minima(name, run_config, two_tasks, tmp_path):
    train(
        run_config(name, num_steps=3), tmp_path, device="cpu", tasks=two_tasks, execution=Execution(save_trajectory=2)
    )
    strategy = get_strategy(name)
    labels = ["2-JOINT"] if name == "joint" else ["1-zeta", "2-alpha"]
    for label in labels:
        num_steps = 6 if name == "joint" or (name == "mc_sgd" and label == "2-alpha") else 3
        folders = {f.name for f in (tmp_path / "trajectory" / label).iterdir()}
        assert folders == set(strategy.learners) - set(strategy.resting_learners)
        for learner in folders:
            files = snapshot_files(tmp_path, label, learner)
            assert list(files) == sorted({*range(0, num_steps, 2), num_steps})
            end, minimum = read_snapshot(files[num_steps]), load_adapter(tmp_path / "minima" / label / learner).point
            assert end.keys() == minimum.keys()
            assert all(torch.equal(end[k], minimum[k]) for k in end)


def test_product_averages_of_ilora_are_saved_with_their_rank_of_the_moment(run_config, two_tasks, tmp_path):
    config = run_config("ilora", num_steps=3, strategy_settings={"average_in": "product", "answering": 0.5})
    train(config, tmp_path, device="cpu", tasks=two_tasks, execution=Execution(save_trajectory=1))
    for learner in ("fast", "slow", "blend"):
        for label in ("1-zeta", "2-alpha"):
            end = read_snapshot(snapshot_files(tmp_path, label, learner)[3])
            assert all(math.isfinite(float(t.sum())) for t in end.values())


@pytest.mark.parametrize("name", [n for n in strategy_names() if not get_strategy(n).has_paths])
def test_a_strategy_without_adapters_is_named_in_a_warning_and_skipped(name, caplog):
    strategy = get_strategy(name)(get_strategy(name).config_class(), 0)
    with caplog.at_level(logging.WARNING):
        writer = TrajectoryWriter("run", 5, None, strategy)  # type: ignore[arg-type]
    writer.write("1-zeta", 0)  # touches no model
    assert name in caplog.text and "no trajectory" in caplog.text


def test_bad_values_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="save_trajectory of at least 0, got -1"):
        Execution(save_trajectory=-1)
    (tmp_path / "7.safetensors").write_text("no snapshot")
    for file in ("7.safetensors", "8.safetensors"):
        with pytest.raises(UserError, match=f"Expected a snapshot in .*{file}.*--save-trajectory"):
            read_snapshot(tmp_path / file)
