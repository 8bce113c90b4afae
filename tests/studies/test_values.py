"""Every example's values along the paths of a run: against losses that are computed here, and the tables."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import mcanalysis as mc
from mcanalysis.models.loading import load_base
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.connectivity.values import COLUMNS, all_values
from mcanalysis.studies.study import carry_out
from mcanalysis.training.continual_trainer import train

TASKS = ("FOMC", "MedMCQA")
STUDY = Connectivity(paths=("linear-delta", "bezier-factor"), num_points=3, num_examples=3, curve_steps=2)
ON_THE_LINE = ("--paths", "linear-delta,bezier-factor", "--num-points", 3, "--num-examples", 3, "--curve-steps", 2)


@pytest.fixture(scope="module")
def trained(run_config, tmp_path_factory):
    config = run_config("ilora", num_steps=3, tasks=TASKS, sizes={"train": 8, "test": 3}, num_test=3)
    folder = tmp_path_factory.mktemp("runs") / "ilora"
    train(config, folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def values(trained):
    return mc.example_values(trained, STUDY)


def test_there_is_a_row_for_every_path_task_split_point_and_example(trained, values):
    assert tuple(values) == COLUMNS
    assert len(values) == 2 * 2 * 2 * 3 * 3  # paths, tasks, splits, points, examples
    assert set(values.learner) == {"slow"} and set(values.t) == {0.0, 0.5, 1.0}
    assert not values.duplicated(["path", "split", "task", "t", "example"]).any()


def test_the_loss_of_an_example_is_that_of_transformers_with_the_middle_of_both_updates(trained, values):
    """ΔW of both minima halved and added to the base's weights by hand; the loss of the answer's tokens, by PyTorch."""
    run = mc.load_run(trained, "cpu")
    objective = run.task_objective("MedMCQA", "test", 3)
    base, _ = load_base(run.config["model"])
    weights = dict(base.named_parameters())
    for minimum in run.minima:
        folder = trained / "minima" / minimum.label / "slow"
        config = json.loads((folder / "adapter_config.json").read_text())
        factors = load_file(folder / "adapter_model.safetensors")
        for name in factors:
            if name.endswith("lora_A.weight"):
                delta = factors[name.replace("lora_A", "lora_B")] @ factors[name]
                module = name.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
                with torch.no_grad():
                    weights[f"{module}.weight"] += 0.5 * config["lora_alpha"] / config["r"] * delta
    own = values[(values.path == "linear") & (values.t == 0.5) & (values.task == "MedMCQA") & (values.split == "test")]
    for row, encoded in zip(own.itertuples(), objective.encoded, strict=True):
        ids = torch.tensor([*encoded.prompt_ids, *encoded.answer_ids])
        with torch.no_grad():
            logits = base(input_ids=ids[None]).logits[0]
        number = len(encoded.answer_ids)
        loss = functional.cross_entropy(logits[-number - 1 : -1].double(), ids[-number:])
        assert row.targets == number
        assert row.loss == pytest.approx(float(loss), rel=1e-4)


def test_their_means_are_the_tables(trained, values, tmp_path):
    run = mc.load_run(shutil.copytree(trained, tmp_path / "run"), "cpu")
    profiles = carry_out(STUDY, [run], tmp_path).tables["profiles"]
    own = profiles[profiles.task.isin(TASKS)]
    for row in own.itertuples():
        of = values[(values.path == row.path) & (values.split == row.split) & (values.task == row.task)]
        of = of[np.isclose(of.t, row.t)]
        assert len(of) == 3
        assert np.average(of.loss, weights=of.targets) == pytest.approx(row.loss, rel=1e-5)
        assert of.score.mean() == pytest.approx(row.score)


def test_the_script_writes_one_file_of_several_runs_which_pandas_reads(script, trained, values, tmp_path, run_config):
    runs = tmp_path / "one", tmp_path / "two"
    shutil.copytree(trained, runs[0])
    other = run_config("sequential", num_steps=3, tasks=TASKS, sizes={"train": 8, "test": 3}, num_test=3)
    train(other, runs[1], device="cpu")
    others = ("--other-paths", "linear-delta,bezier-factor")
    code, out, err = script("values", *runs, *ON_THE_LINE, *others, "--output", tmp_path / "v.parquet")
    assert code == 0, err
    assert f"{2 * len(values)} values of 2 run(s)" in out
    read = pd.read_parquet(tmp_path / "v.parquet")
    assert read.strategy.value_counts().to_dict() == {"ilora": len(values), "sequential": len(values)}
    own = read[read.strategy == "ilora"].reset_index(drop=True)
    numbers = ["t", "example", "loss", "targets", "score"]
    pd.testing.assert_frame_equal(own[numbers], values[numbers])
    assert own.task.astype(str).tolist() == values.task.astype(str).tolist()
    assert read.dtypes.astype(str).to_dict()["loss"] == "float32"


def test_runs_that_share_all_but_their_rate_stay_two(trained, values, run_config, tmp_path):
    config = run_config("ilora", num_steps=3, tasks=TASKS, sizes={"train": 8, "test": 3}, num_test=3)
    faster = replace(config.training, learning_rate=3 * config.training.learning_rate)
    train(replace(config, training=faster), tmp_path / "fast", device="cpu")
    runs = [mc.load_run(trained), mc.load_run(tmp_path / "fast")]
    for of_two in (all_values(runs, STUDY), all_values(runs[::-1], STUDY)):
        assert len(of_two) == 2 * len(values) and set(of_two.run) == {str(trained), str(tmp_path / "fast")}
        own = of_two[of_two.run == str(trained)]
        assert own.loss.to_list() == values.loss.to_list() != of_two[of_two.run != str(trained)].loss.to_list()


def test_what_has_no_paths_is_refused_and_nothing_is_written(script, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["nowhere"], "nowhere"),
        ([trained, "--paths", "linear-beta"], "linear-beta"),
        ([trained, "--output", "/dev/null"], "/dev/null"),
        ([trained, "--output", trained / "manifest.json"], "would be lost"),
        ([trained, "--output", trained / "tables"], "folder"),
        ([trained, trained], "twice"),
    ):
        code, _, err = script("values", *arguments)
        assert code == 2 and said in err and err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


def test_examples_without_targets_or_scores_have_no_number(values):
    from mcanalysis.connectivity.profile import Profile
    from mcanalysis.studies.connectivity.values import _rows

    profile = Profile(np.array([0.0]), np.array([1.0]), np.array([[2.0, 0.0]]), np.array([2, 0]))
    rows = _rows(profile, {})
    assert rows.loss.tolist()[0] == 1.0 and np.isnan(rows.loss.tolist()[1]) and rows.score.isna().all()
    assert len(all_values([], STUDY)) == 0
