"""`analyses/connectivity.py` end to end on small runs: files, columns, reuse, and two adapters from elsewhere."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import mcanalysis as mc
from mcanalysis.evaluation.engine import Engine
from mcanalysis.models.loading import load_base
from mcanalysis.store.manifest import write_manifest
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.tasks.embedded import generate_task

SMALL = (
    "--tasks", "FOMC,MedMCQA,JEC-QA", "--steps", 3, "--num-train", 16, "--num-test", 4, "--batch-size", 4,
    "--num-points", 3, "--num-examples", 4, "--curve-steps", 2, "--workers", 1,
)  # fmt: skip
KEYS = ["strategy", "learner", "seed", "space", "path", "start", "end", "task", "split"]


_MADE: dict[str, object] = {}


@pytest.fixture
def finished(script, tmp_path, tmp_path_factory):
    """A copy of runs that are made once."""
    if not _MADE:
        code, out, err = script("connectivity", *SMALL, "--strategy", "sequential,ilora")
        assert code == 0, err
        _MADE["runs"], _MADE["out"] = tmp_path_factory.mktemp("finished") / "runs", out
        shutil.move(tmp_path / "runs", _MADE["runs"])
    shutil.copytree(_MADE["runs"], tmp_path / "runs")
    return tmp_path / "runs", _MADE["out"]


def test_files_tables_and_figures(finished):
    runs, out = finished
    sequential = runs / "embedded-sequential-seed0"
    for stem in (sequential / "figures/connectivity_fast", runs / "comparison/figures/stability_plasticity"):
        assert stem.with_suffix(".pdf").stat().st_size > 1000
        assert stem.with_suffix(".png").stat().st_size > 1000
    assert "chord barrier" in (sequential / "figures/connectivity_fast.txt").read_text()
    profiles = pd.read_csv(sequential / "tables/profiles.csv")
    assert set(KEYS) <= set(profiles.columns)
    # two transitions × three paths × three points × two splits × (tasks so far + two means)
    assert len(profiles) == 3 * 3 * 2 * ((2 + 2) + (3 + 2))
    assert set(profiles.t) == {0.0, 0.5, 1.0}
    assert set(zip(profiles.path, profiles.space, strict=True)) == {
        ("linear", "factor"), ("linear", "delta"), ("bezier", "factor"),
    }  # fmt: skip
    ends = profiles[(profiles.t != 0.5)].groupby([*KEYS[5:], "t"]).loss.nunique()
    assert (ends == 1).all(), "the ends are the same points on every path"
    other = pd.read_csv(runs / "embedded-ilora-seed0/tables/profiles.csv")
    assert set(zip(other.path, other.space, strict=True)) == {("linear", "factor")}
    assert set(other.learner) == {"slow"}
    assert "1-FOMC → 2-MedMCQA" in out and "average accuracy minus sequential: ilora " in out
    together = pd.read_csv(runs / "comparison/tables/barriers.csv")
    assert set(together.strategy) == {"sequential", "ilora"}


def test_a_second_run_computes_nothing_and_a_missing_value_is_computed_alone(finished, script, monkeypatch):
    runs, _ = finished
    calls = []
    measure = Engine.measure
    monkeypatch.setattr(Engine, "measure", lambda self, *asked: calls.append(1) or measure(self, *asked))
    monkeypatch.setattr(Connectivity, "pictures", lambda *_: ())  # of each run; that of all is looked at
    picture = (runs / "comparison/figures/stability_plasticity.png").read_bytes()
    assert script("connectivity", *SMALL, "--strategy", "sequential,ilora")[0] == 0
    assert not calls
    assert (runs / "comparison/figures/stability_plasticity.png").read_bytes() == picture
    more = [5 if before == "--num-points" else value for before, value in zip(("", *SMALL), SMALL, strict=False)]
    assert script("connectivity", *more, "--strategy", "sequential,ilora")[0] == 0
    assert len(calls) == 2 * 2 * (3 + 1)  # two new points on each path of two transitions


def test_load_run_gives_minima_matrix_metrics_paths_and_objectives(finished):
    run = mc.load_run(finished[0] / "embedded-sequential-seed0")
    assert [m.label for m in run.minima] == ["1-FOMC", "2-MedMCQA", "3-JEC-QA"]
    assert run.accuracy_matrix.shape == (4, 4)
    assert run.metrics["learners"]["fast"]["average_accuracy"] == run.metrics["average_accuracy"]
    for space in ("factor", "delta", "aligned"):
        path = run.path(1, "3-JEC-QA", space=space)
        found = mc.profile(path, run.objective("FOMC", "test", num_examples=4), ts=[0, 0.5, 1])
        table = pd.read_csv(run.directory / "tables/profiles.csv")
        first = table[(table.start == "1-FOMC") & (table.t == 0) & (table.split == "test") & (table.task == "FOMC")]
        assert found.losses[0] == pytest.approx(first.loss.iloc[0], abs=1e-5)
    with pytest.raises(mc.UserError, match="Did you mean '2-MedMCQA'"):
        run.minimum("2-MedMCQ")
    curve = mc.Bezier(run.minima[0].point, run.minima[1].point)
    loss = run.loss([["FOMC"], ["MedMCQA"]], batch_size=4)
    fitted = mc.fit_curve(curve, loss, num_steps=2)
    assert any((fitted.bends[0][k] != curve.bends[0][k]).any() for k in curve.bends[0])


def test_a_changed_base_is_refused(finished):
    directory = finished[0] / "embedded-sequential-seed0"
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["hashes"]["base"] = "0" * 64
    write_manifest(directory, manifest)
    with pytest.raises(mc.UserError, match="base model"):
        _ = mc.load_run(directory).model


def test_two_adapters_from_elsewhere_have_peft_own_loss_at_the_ends(finished, script, tmp_path):
    from peft import PeftModel

    data = {n: generate_task(n).splits["test"][:4] for n in ("FOMC", "MedMCQA")}
    for name, examples in data.items():
        (tmp_path / f"{name}.json").write_text(json.dumps([{"prompt": e.prompt, "answer": e.answer} for e in examples]))
    minima = finished[0] / "embedded-sequential-seed0/minima"
    folders = [minima / "1-FOMC/fast", minima / "2-MedMCQA/fast"]
    arguments = (
        "--minima", ",".join(map(str, folders)), "--data", "FOMC.json,MedMCQA.json", "--score", "accuracy",
        "--num-points", 3, "--paths", "linear-delta", "--output-dir", "out",
    )  # fmt: skip
    code, out, err = script("connectivity", *arguments)
    assert code == 0, err
    assert "1-FOMC → 2-MedMCQA" in out
    profiles = pd.read_csv(tmp_path / "out/tables/profiles.csv")
    for t, folder in zip((0.0, 1.0), folders, strict=True):
        base, tokenizer = load_base(dtype="float64")
        model = PeftModel.from_pretrained(base, folder).eval()
        total = []
        for e in data["FOMC"]:
            prompt = tokenizer(e.prompt)["input_ids"]
            answer = [*tokenizer(e.answer)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            total.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none"))
        row = profiles[(profiles.t == t) & (profiles.task == "FOMC")].iloc[0]
        assert row.loss == pytest.approx(float(torch.cat(total).mean()), rel=100 * torch.finfo(torch.float32).eps)
    assert np.isnan(pd.read_csv(tmp_path / "out/tables/barriers.csv").interpolation_gain).all()
    code, _, err = script("connectivity", *arguments, "--dtype", "float64")
    assert code == 2 and "another configuration" in err and "float64" in err
    # what was measured is part of what the directory is: nothing else may take its place
    before = (tmp_path / "out/tables/profiles.csv").read_bytes()
    swapped = {"--minima": ",".join(map(str, reversed(folders))), "--data": "MedMCQA.json,FOMC.json"}
    for flag, value in swapped.items():
        other = list(arguments)
        other[other.index(flag) + 1] = value
        code, _, err = script("connectivity", *other)
        assert code == 2 and flag.removeprefix("--") in err and "another configuration" in err, err
    assert (tmp_path / "out/tables/profiles.csv").read_bytes() == before


def test_adapters_that_name_another_base_than_the_model_are_warned_of(finished, script, tmp_path, caplog):
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": f"{i}:", "answer": "A"} for i in range(3)]))
    minima = finished[0] / "embedded-sequential-seed0/minima"
    for name in ("1-FOMC", "2-MedMCQA"):
        shutil.copytree(minima / name / "fast", tmp_path / name)
    flags = ("--minima", "1-FOMC,2-MedMCQA", "--data", "data.json", "--num-points", 2, "--paths", "linear-delta")
    assert script("connectivity", *flags, "--output-dir", "same")[0] == 0 and "trained on" not in caplog.text
    for name in ("1-FOMC", "2-MedMCQA"):
        file = tmp_path / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "some/other"}))
    assert script("connectivity", *flags, "--output-dir", "other")[0] == 0
    assert "trained on 'some/other', and --model is 'embedded'" in caplog.text


def test_runs_are_not_put_into_a_run(finished, script):
    run = finished[0] / "embedded-sequential-seed0"
    for name in ("connectivity", "compare", "similarity"):
        code, _, err = script(name, "--strategy", "er", "--steps", 1, "--seed", 7, "--output-dir", run)
        assert code == 2 and "got a run directory at" in err, err
    assert not list(run.glob("embedded-*"))
