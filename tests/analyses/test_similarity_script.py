"""`analyses/similarity.py` end to end on small runs: tables, figures, reuse, resuming, refusals."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import mcanalysis as mc
from mcanalysis.evaluation import representations
from mcanalysis.evaluation.engine import Engine
from mcanalysis.params.weight_distance import module_distances, weight_distance
from mcanalysis.store.atomic import write_bytes_atomic
from mcanalysis.studies import similarity_tables
from mcanalysis.studies.similarity import Similarity

SMALL = (
    "--tasks", "FOMC,MedMCQA,JEC-QA", "--steps", 3, "--num-train", 16, "--num-test", 4, "--batch-size", 4,
    "--num-examples", 6, "--workers", 1, "--strategy", "sequential,ilora",
)  # fmt: skip
TABLES = ("weight_distance", "subspace_overlap", "cka", "prediction_similarity")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What the first call made, for all tests to copy."""
    return {"runs": tmp_path_factory.mktemp("kept") / "runs", "out": ""}


@pytest.fixture
def finished(script, tmp_path, kept):
    """The run directories of a finished study, to do with as one likes, and what it printed."""
    if kept["runs"].exists():
        shutil.copytree(kept["runs"], tmp_path / "runs")
    else:
        code, kept["out"], err = script("similarity", *SMALL)
        assert code == 0, err
        shutil.copytree(tmp_path / "runs", kept["runs"])
    return tmp_path / "runs", kept["out"]


def read(directory):
    return {name: pd.read_csv(directory / "tables" / f"{name}.csv") for name in TABLES}


def counting(monkeypatch):
    calls = []
    compare, evaluate = representations.compare_points, Engine.evaluate
    monkeypatch.setattr(representations, "compare_points", lambda *a, **k: calls.append("compare") or compare(*a, **k))
    monkeypatch.setattr(Engine, "evaluate", lambda *a, **k: calls.append("answer") or evaluate(*a, **k))
    weights = similarity_tables.distance_rows
    monkeypatch.setattr(similarity_tables, "distance_rows", lambda *a: calls.append("weights") or weights(*a))
    return calls


def test_tables_hold_what_the_brief_functions_say(finished):
    runs, out = finished
    directory = runs / "embedded-sequential-seed0"
    run, tables = mc.load_run(directory), read(directory)
    minima = run.minima

    weights = tables["weight_distance"]
    assert len(weights) == 3 * 3 * (1 + 12)  # pairs × spaces × (all and each module)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        of_pair = weights[(weights.start == minima[a].label) & (weights.end == minima[b].label)]
        assert set(of_pair.comparison) == {"successive" if b == a + 1 else "any"}
        for space in ("factor", "delta", "aligned"):
            rows = of_pair[of_pair.space == space].set_index("module")
            parts = module_distances(minima[a].point, minima[b].point, space)
            parts["all"] = weight_distance(minima[a].point, minima[b].point, space)
            assert set(rows.index) == set(parts)
            for module, found in parts.items():
                row = rows.loc[module, ["distance", "relative", "cosine", "norm_start", "norm_end"]]
                assert tuple(row) == pytest.approx(tuple(found), rel=1e-9)

    overlaps = tables["subspace_overlap"]
    assert len(overlaps) == 3 * 12 * 2
    assert ((overlaps.overlap >= 0) & (overlaps.overlap <= 1 + 1e-12)).all()
    assert [len(str(a).split()) for a in overlaps.angles] == overlaps.num_angles.tolist()

    # Three successive links and three from the base; of the k-th, k tasks, and a mean where there are earlier ones.
    links = 2 * (1 + (2 + 1) + (3 + 1))
    assert len(tables["prediction_similarity"]) == links and len(tables["cka"]) == 3 * links
    assert set(tables["cka"].num_examples) == {6, 12}
    assert "sequential / seed 0" in out and "1-FOMC fast" in out


def test_predictions_are_those_of_the_engine_and_means_those_of_the_tasks(finished):
    run = mc.load_run(finished[0] / "embedded-sequential-seed0")
    table = read(run.directory)["prediction_similarity"]
    rows = table[(table.start == "2-MedMCQA") & (table.end == "3-JEC-QA")].set_index("task")
    assert rows.role.to_dict() == {"FOMC": "old", "MedMCQA": "old", "JEC-QA": "new", "mean_old": "old"}
    for task in run.task_names:
        objective = run.task_objective(task, "test", 6)
        answers = [run.engine.evaluate(m.point, [objective])[0].outputs for m in run.minima[1:]]
        assert rows.churn[task] == np.mean([a != b for a, b in zip(*answers, strict=True)])
        assert rows.num_targets[task] == sum(len(e.answer_ids) for e in objective.encoded)
    for name in ("churn", "kl", "symmetric_kl", "js"):
        assert rows.loc["mean_old", name] == pytest.approx(rows.loc[["FOMC", "MedMCQA"], name].mean())
        assert (rows[f"{name}_low"] <= rows[name] + 1e-12).all() and (rows[name] <= rows[f"{name}_high"] + 1e-12).all()
    assert (rows.kl > 0).all() and rows.num_examples["mean_old"] == 12
    cka = read(run.directory)["cka"]
    of_layer = cka[(cka.start == "2-MedMCQA") & (cka.end == "3-JEC-QA") & (cka.layer == 2)].set_index("task")
    assert of_layer.cka["mean_old"] == pytest.approx(of_layer.cka[["FOMC", "MedMCQA"]].mean())
    halves = (of_layer.cka_high - of_layer.cka_low) / 2
    assert halves["mean_old"] == pytest.approx(np.hypot(halves["FOMC"], halves["MedMCQA"]) / 2)


def test_ilora_compares_its_learners_too(finished):
    directory = finished[0] / "embedded-ilora-seed0"
    tables = read(directory)
    for name in TABLES:
        rows = tables[name][tables[name].comparison == "learners"]
        assert set(zip(rows.start, rows.end, strict=True)) == {(m, m) for m in ("1-FOMC", "2-MedMCQA", "3-JEC-QA")}
        assert set(rows.start_learner) == {"fast"} and set(rows.end_learner) == {"slow"}
    for what in ("cka", "predictions", "distances", "angles"):
        for learner in ("fast", "slow"):
            stem = directory / "figures" / f"similarity_{what}_{learner}"
            assert all(stem.with_suffix(e).stat().st_size > 1000 for e in (".pdf", ".png"))
            assert learner in stem.with_suffix(".txt").read_text()


def test_a_second_call_computes_nothing_and_what_is_missing_is_computed_alone(finished, script, monkeypatch):
    directory = finished[0] / "embedded-sequential-seed0"
    again = ("similarity", "--run", directory, "--workers", 1, "--num-examples")
    before = {f: f.read_bytes() for f in directory.rglob("tables/*.csv")}
    calls = counting(monkeypatch)
    assert script(*again, 6)[0] == 0
    assert calls == []
    monkeypatch.setattr(Similarity, "pictures", lambda *_: ())  # numbers alone from here on
    assert {f: f.read_bytes() for f in before} == before
    stored = sorted((directory / "similarity").iterdir())
    assert len(stored) == 4
    next(f for f in stored if f.name.startswith("2-MedMCQA")).unlink()
    assert script(*again, 6)[0] == 0
    assert calls == ["answer"] * 4 + ["compare"]  # the base and three minima
    assert {f: f.read_bytes() for f in before} == before
    calls.clear()
    assert script(*again, 5)[0] == 0
    assert calls.count("compare") == 3 and "weights" not in calls


def test_a_stopped_study_goes_on_where_it_was(script, monkeypatch, tmp_path):
    only = (*SMALL[:-1], "sequential")
    compare = representations.compare_points
    done = []

    def stopping(*arguments, **settings):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return compare(*arguments, **settings)

    monkeypatch.setattr(representations, "compare_points", stopping)
    code, _, err = script("similarity", *only)
    directory = tmp_path / "runs/embedded-sequential-seed0"
    assert code == 130 and "stopped" in err
    assert len(list((directory / "similarity").iterdir())) == 2
    assert not (directory / "tables/cka.csv").exists()
    monkeypatch.setattr(representations, "compare_points", compare)
    monkeypatch.setattr(Similarity, "pictures", lambda *_: ())  # numbers alone
    calls = counting(monkeypatch)
    assert script("similarity", *only)[0] == 0
    assert calls.count("compare") == 2 and "weights" not in calls


def test_other_minima_are_never_taken_for_these(finished, script, monkeypatch):
    directory = finished[0] / "embedded-sequential-seed0"
    first, second = (directory / "minima" / name / "fast" for name in ("1-FOMC", "2-MedMCQA"))
    content = (second / "adapter_model.safetensors").read_bytes()
    write_bytes_atomic(first / "adapter_model.safetensors", content)  # as if the run had done so
    monkeypatch.setattr(Similarity, "pictures", lambda *_: ())  # numbers alone
    calls = counting(monkeypatch)
    assert script("similarity", "--run", directory, "--num-examples", 6, "--workers", 1)[0] == 0
    assert calls.count("compare") == 3
    rows = read(directory)["weight_distance"]
    assert (rows[(rows.start == "1-FOMC") & (rows.end == "2-MedMCQA") & (rows.module == "all")].distance < 1e-6).all()


@pytest.mark.slow
def test_workers_give_the_same_tables(finished, script):
    directory = finished[0] / "embedded-sequential-seed0"
    before = read(directory)
    for file in sorted((directory / "similarity").iterdir())[:2]:
        file.unlink()
    code, _, err = script("similarity", "--run", directory, "--num-examples", 6, "--workers", 2)
    assert code == 0, err
    for name, table in read(directory).items():
        pd.testing.assert_frame_equal(table, before[name], rtol=1e-4, atol=1e-4)


def test_bad_input_ends_with_one_line(script, tmp_path):
    code, _, err = script("similarity", *(3 if flag == 6 else flag for flag in SMALL))
    assert code == 2 and "at least 4 examples per task for unbiased CKA, got 3" in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    one = ("--tasks", "FOMC", *SMALL[2:-1])
    code, _, err = script("similarity", *one, "sequential")
    assert code == 2 and "at least two minima, got 1" in err.splitlines()[-1]
    assert not list(tmp_path.rglob("similarity"))
    for name in ("similarity", "landscape", "curvature", "attribution", "connectivity"):
        code, _, err = script(name, *SMALL[:-1], "l2p", "--output-dir", "prompts")
        assert code == 2 and "strategies that train LoRA adapters, got l2p" in err and err.count("\n") == 1
    assert not (tmp_path / "prompts").exists()
    code, _, err = script("similarity", "--run", tmp_path / "nowhere")
    assert code == 2 and "nowhere" in err


def test_stored_results_are_plain_json(finished):
    for file in (finished[0] / "embedded-ilora-seed0/similarity").iterdir():
        stored = json.loads(file.read_text(encoding="utf-8"))
        assert stored and "NaN" not in file.read_text(encoding="utf-8")
