"""`analyses/connectivity.py` beyond the three first paths: every kind, the whole run, ensembles, simplex, tolerance."""

import json
import shutil
import sqlite3

import numpy as np
import pandas as pd
import pytest
import torch

import mcanalysis as mc
from mcanalysis.evaluation.differentiable import MinibatchLoss
from mcanalysis.evaluation.engine import Engine
from mcanalysis.params import content_hash
from mcanalysis.paths import SegmentedBezier, Simplex
from mcanalysis.store.point_files import read_points
from mcanalysis.studies.connectivity.result_tables import ResultTables
from mcanalysis.studies.connectivity.study import Connectivity

SMALL = ("--num-points", 3, "--num-examples", 4, "--curve-steps", 2)


@pytest.fixture(scope="module")
def trained(run_config, tmp_path_factory):
    from dataclasses import replace

    from mcanalysis.training.continual_trainer import train

    folder = tmp_path_factory.mktemp("trained")
    sizes = {"train": 16, "eval": 6, "test": 6}
    config = run_config(tasks=("FOMC", "MedMCQA", "JEC-QA"), sizes=sizes, num_test=4)
    for seed in (0, 1):
        train(replace(config, seed=seed), folder / f"seed{seed}", device="cpu")
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    for seed in (0, 1):
        shutil.copytree(trained / f"seed{seed}", tmp_path / f"seed{seed}")
    return tmp_path


def test_every_kind_of_path_ensembles_simplex_and_seeds(script, runs, monkeypatch):
    flags = (
        "--run", "seed0", "--run", "seed1", *SMALL, "--ensemble", 3, "--simplex", "1,2,3", "--paths",
        "linear-aligned,bezier-delta,polychain-aligned,segmented_bezier-factor",
    )  # fmt: skip
    code, out, err = script("connectivity", *flags)
    assert code == 0, err
    tables = {f.stem: pd.read_csv(f) for f in (runs / "seed0/tables").glob("*.csv")}
    kinds = {("linear", "aligned"), ("bezier", "delta"), ("polychain", "aligned"), ("segmented_bezier", "factor")}
    for name in ("profiles", "barriers", "paths", "front", "ensemble"):
        assert set(zip(tables[name].path, tables[name].space, strict=True)) == kinds, name
    way = tables["profiles"][tables["profiles"].path == "segmented_bezier"]
    assert set(zip(way.start, way.end, strict=True)) == {("1-FOMC", "3-JEC-QA")}
    assert set(way.t) == {0.0, 0.5, 1.0}
    # its knots are the minima: what was measured there is what every other path has at its ends
    ends = tables["profiles"][(tables["profiles"].path == "linear") & (tables["profiles"].task == "FOMC")]
    for t, start, at in ((0.0, "1-FOMC", 0.0), (0.5, "2-MedMCQA", 0.0), (1.0, "2-MedMCQA", 1.0)):
        there = way[(way.task == "FOMC") & (way.t == t) & (way.split == "test")].loss.iloc[0]
        expected = ends[(ends.start == start) & (ends.t == at) & (ends.split == "test")].loss.iloc[0]
        assert there == pytest.approx(expected, abs=1e-5)
    assert (runs / "seed0/figures/segmented_bezier_factor_fast.pdf").stat().st_size > 1000
    simplex = tables["simplex"]
    assert len(simplex) == (3 + 1) * 3 * 2 and simplex.minima[0] == "1-FOMC 2-MedMCQA 3-JEC-QA"
    corner = simplex[(simplex.w1 == 1) & (simplex.task == "FOMC") & (simplex.split == "test")].loss.iloc[0]
    assert corner == ends[(ends.start == "1-FOMC") & (ends.t == 0) & (ends.split == "test")].loss.iloc[0]
    averaged = tables["ensemble"]
    linear = averaged[(averaged.path == "linear") & (averaged.start == "1-FOMC") & (averaged.task == "FOMC")]
    assert linear.member.tolist() == ["point"] * 3 + ["ensemble"]
    first = ends[(ends.start == "1-FOMC") & (ends.split == "test")].sort_values("t").loss.tolist()
    assert linear.loss.tolist()[:3] == pytest.approx(first, abs=1e-4), "teacher-forced losses are the profile's"
    assert linear.loss.iloc[3] <= linear.loss.iloc[:3].mean() + 1e-6
    over = pd.read_csv(runs / "runs/comparison/tables/barriers_over_seeds.csv")
    assert set(over.seeds) == {2} and over.chord_barrier_low.notna().all() and "all" in set(over.start)
    for words in ("segmented_bezier", "ensemble", "simplex", "hypervolume", "over seeds"):
        assert words in out.lower(), words

    monkeypatch.setattr(Engine, "measure", None)
    monkeypatch.setattr(MinibatchLoss, "__call__", None)
    monkeypatch.setattr("mcanalysis.studies.connectivity.stored_ensemble.ensemble_along", None)
    monkeypatch.setattr(Connectivity, "pictures", lambda *_: ())  # numbers alone
    again = script("connectivity", *flags)
    printed = [text.split("figure after")[-1].partition(" s: ")[2] for text in (out, again[1])]
    assert again[0] == 0 and printed[0] == printed[1]


def test_stored_curves_and_paths_are_read_from_the_run(script, runs, monkeypatch):
    monkeypatch.setattr(Connectivity, "pictures", lambda *_: ())  # numbers alone
    flags = ("--run", "seed0", *SMALL, "--paths", "bezier-delta,segmented_bezier-factor,polychain-factor")
    assert script("connectivity", *flags, "--num-bends", 2)[0] == 0
    run = mc.load_run(runs / "seed0")
    table = pd.read_csv(runs / "seed0/tables/profiles.csv")
    way = run.curve(1, 3, "segmented_bezier")
    assert isinstance(way, SegmentedBezier) and len(way.bends) == 4
    for t, minimum in zip((0.0, 0.5, 1.0), run.minima, strict=True):
        assert content_hash(way(t)) == content_hash(minimum.point)
    for kind, space, where in (("bezier", "delta", (1, 2)), ("polychain", "factor", ("2-MedMCQA", 3))):
        curve = run.curve(*where, kind, space)
        assert len(curve.bends) == 2
        row = table[(table.path == kind) & (table.start == run.minimum(where[0]).label) & (table.t == 0.5)]
        row = row[(row.task == "FOMC") & (row.split == "test")].iloc[0]
        assert run.objective("FOMC", num_examples=4)(curve(0.5)).loss == pytest.approx(row.loss, abs=1e-5)
    with pytest.raises(mc.UserError, match=r"got 0; fit it with connectivity\.py --paths bezier-factor"):
        run.curve(1, 2)
    with pytest.raises(mc.UserError, match="use Run"):
        run.curve(1, 2, "linear")
    assert script("connectivity", *flags)[0] == 0  # one bend: other curves beside those
    with pytest.raises(mc.UserError, match="got 2; choose one by key"):
        run.curve(1, 2, "bezier", "delta")
    keys = sorted(f.stem[-8:] for f in (runs / "seed0/curves/fast").glob("1-FOMC--2-MedMCQA-bezier-delta-*"))
    assert {len(run.curve(1, 2, "bezier", "delta", key=key).bends) for key in keys} == {1, 2}
    far = run.path(1, 3, space="delta", extrapolate=True)
    assert torch.isfinite(next(iter(far(1.2).values()))).all()
    with pytest.raises(mc.UserError, match="extrapolate=True"):
        run.path(1, 3)(1.2)
    with pytest.raises(mc.UserError, match=r"Unknown task of this run 'FOMCC'\. Did you mean 'FOMC'"):
        run.loss([["FOMCC"]])


def test_the_whole_loss_is_the_mean_over_all_examples(runs):
    run = mc.load_run(runs / "seed0")
    point = run.minimum(2).point
    groups = [["FOMC", "MedMCQA"], ["JEC-QA"]]
    each = [[run.objective(task, "train")(point) for task in group] for group in groups]
    expected = np.mean([sum(m.nll.sum() for m in g) / sum(m.targets.sum() for m in g) for g in each])
    assert float(sum(run.whole_loss(groups)(point)).detach()) == pytest.approx(expected, rel=1e-5)
    drawn = run.loss(groups, batch_size=1000)  # all of every group, in another order
    assert float(drawn(point).detach()) == pytest.approx(expected, rel=1e-5)


def test_a_fit_that_is_killed_goes_on_from_its_checkpoint(script, runs, monkeypatch):
    flags = ("--run", "seed0", "--num-points", 3, "--num-examples", 2, "--curve-steps", 14, "--paths", "bezier-factor")
    monkeypatch.setattr(Connectivity, "pictures", lambda *_: ())  # numbers alone
    shutil.copytree(runs / "seed0", runs / "other")
    assert script("connectivity", "--run", "other", *flags[2:])[0] == 0
    call, calls = MinibatchLoss.__call__, []

    def stopping(self, point):
        calls.append(1)
        if len(calls) == 14 + 12:  # in the second transition's fit
            raise KeyboardInterrupt
        return call(self, point)

    monkeypatch.setattr(MinibatchLoss, "__call__", stopping)
    assert script("connectivity", *flags)[0] == 130
    assert len(list((runs / "seed0/curves/fast").glob("*.checkpoint"))) == 1
    calls.clear()
    monkeypatch.setattr(MinibatchLoss, "__call__", lambda self, point: calls.append(1) or call(self, point))
    assert script("connectivity", *flags)[0] == 0
    assert len(calls) == 14 - 10
    files = {d: sorted((runs / d / "curves/fast").iterdir()) for d in ("seed0", "other")}
    assert [f.name for f in files["seed0"]] == [f.name for f in files["other"]]
    for resumed, whole in zip(files["seed0"], files["other"], strict=True):
        assert content_hash(read_points(resumed)[0]) == content_hash(read_points(whole)[0])


def test_a_tolerance_takes_fewer_points_and_says_what_is_known(script, runs, monkeypatch):
    pictures = Connectivity.pictures
    monkeypatch.setattr(Connectivity, "pictures", lambda *_: ())  # numbers alone
    flags = (
        "--run",
        "seed0",
        "--num-examples",
        4,
        "--num-points",
        33,
        "--paths",
        "linear-factor,segmented_bezier-factor",
    )
    code, _, err = script("connectivity", *flags, "--curve-steps", 1, "--tolerance", 0.05)
    assert code == 0, err
    paths = pd.read_csv(runs / "seed0/tables/paths.csv")
    profiles = pd.read_csv(runs / "seed0/tables/profiles.csv")
    barriers = pd.read_csv(runs / "seed0/tables/barriers.csv")
    known = barriers[barriers.certificate.notna()]
    assert (known.quantity == "loss").all() and (known.groupby(["path", "start"]).task.nunique() == 2).all()
    reached = known[known.tolerance_reached.astype(bool)]
    assert len(reached) >= len(known) / 2
    assert (reached.chord_barrier_at_most - reached.chord_barrier_at_least <= 0.05).all()
    assert (known.chord_barrier_at_least <= known.chord_barrier + 1e-9).all()
    assert (known.chord_barrier <= known.chord_barrier_at_most + 1e-9).all()
    assert (known.evaluations <= 1.1 * 33).all()
    certificates = pd.read_csv(runs / "seed0/tables/certificates.csv")
    assert set(certificates.num_examples) == {0, 4} or set(certificates.num_examples) == {0, 4, 8}
    assert paths.barrier_remaining.notna().all()
    of_straight = {"certificates": certificates[certificates.path == "linear"], "barriers": barriers}
    (picture,) = [p for p in pictures(Connectivity(), of_straight | {"profiles": profiles}) if "cert" in p.stem]
    assert picture.stem == "certificates_fast"
    assert picture.caption.count("chord barrier of the loss from") == 4  # two transitions, old tasks and new one
    linear = profiles[(profiles.path == "linear") & (profiles.start == "1-FOMC")]
    assert 5 <= linear.t.nunique() < 33
    grid = ("--run", "seed1", *SMALL, "--paths", "linear-factor")
    assert script("connectivity", *grid)[0] == 0
    assert pd.read_csv(runs / "seed1/tables/paths.csv").barrier_remaining.isna().all()


def test_a_second_call_takes_rows_that_rest_on_the_same_values(script, runs, monkeypatch):
    monkeypatch.setattr(Connectivity, "pictures", lambda *_: ())
    flags = ("--run", "seed0", *SMALL, "--paths", "linear-factor,linear-delta")
    assert script("connectivity", *flags)[0] == 0
    tables = {file: file.read_bytes() for file in (runs / "seed0/tables").glob("*.csv")}
    made, make = [], ResultTables._make
    monkeypatch.setattr(ResultTables, "_make", lambda *given: (made.append(given), make(*given)))
    assert script("connectivity", *flags)[0] == 0
    assert not made and {file: file.read_bytes() for file in tables} == tables
    with sqlite3.connect(runs / "seed0/measurements.sqlite") as store:  # other values under the same keys
        store.execute("UPDATE measurements SET loss = loss + 1 WHERE split = 'test'")
    store.close()
    assert script("connectivity", *flags)[0] == 0
    assert made
    kept = runs / "seed0/tables/.Connectivity.json"
    whole = json.loads(kept.read_text())
    whole["rows"]["profiles"][0]["loss"] += 1  # a number that nobody measured
    for damaged in ("{", json.dumps(whole)):
        made.clear()
        kept.write_text(damaged)
        assert script("connectivity", *flags)[0] == 0
        assert made


def test_losses_of_some_examples_are_those_of_all_and_are_stored(runs, monkeypatch):
    from mcanalysis.evaluation.measuring import measurement_key
    from mcanalysis.studies.connectivity.measuring import OnPath, PathName
    from mcanalysis.studies.engine import Engine as Studies
    from mcanalysis.studies.engine import Here
    from mcanalysis.studies.points import Points

    run = mc.load_run(runs / "seed0")
    points, where = Points(run), OnPath(PathName("fast", "linear-factor", 0), Connectivity(), 0.5)
    chosen = [(run.task_objective("FOMC", "test"), (4, 0, 2)), (run.task_objective("JEC-QA", "test"), (1, 5))]
    whole = [run.objective(task)(where.point(run)) for task in ("FOMC", "JEC-QA")]
    (found,) = Studies(Here()).run([points.losses_of_some("some point", where, chosen)])
    for (_, rows), some, of_all in zip(chosen, found, whole, strict=True):
        assert some.nll == pytest.approx(of_all.nll[list(rows)], rel=1e-5)
        assert (some.targets == of_all.targets[list(rows)]).all()
        assert np.isnan(some.score)
    sampled = run.sampled_objective("FOMC", num_examples=5)
    assert sampled.num_examples == 5
    assert sampled(where.point(run), [4, 0, 2]).nll == pytest.approx(found[0].nll, rel=1e-5)
    monkeypatch.setattr(Engine, "losses", None)
    assert Studies(Here()).run([Points(run).losses_of_some("some point", where, chosen)]) == [found]
    with points.store() as store:
        store.put_many((measurement_key("a grid's", o), m) for (o, _), m in zip(chosen, whole, strict=True))
    (taken,) = Studies(Here()).run([points.losses_of_some("a grid's", where, chosen)])
    assert [m.nll.tolist() for m in taken] == [m.nll[[*r]].tolist() for (_, r), m in zip(chosen, whole, strict=True)]


def test_adapters_of_other_ranks_and_modules_meet_in_delta_and_aligned(script, runs, base_folder):
    from mcanalysis.models.adapter_files import LoraSettings
    from mcanalysis.models.loading import load_base
    from mcanalysis.models.lora_model import LoraModel

    for name, settings in {
        "a": LoraSettings(2, 4.0, 0.0, ("q_proj", "v_proj")), "b": LoraSettings(5, 5.0, 0.0, ("q_proj", "o_proj")),
    }.items():  # fmt: skip
        base, tokenizer = load_base(str(base_folder))
        model = LoraModel.attach(base, tokenizer, settings, 0, str(base_folder))
        generator = torch.Generator().manual_seed(settings.rank)
        with torch.no_grad():
            for parameter in model.parameters.values():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save(runs / name)
    (runs / "data.json").write_text(json.dumps([{"prompt": f"apple {i}:", "answer": "river"} for i in range(3)]))
    flags = ("--minima", "a,b", "--data", "data.json", "--model", base_folder, *SMALL, "--output-dir", "out")
    code, _, err = script(
        "connectivity", *flags, "--paths", "linear-delta,linear-aligned,bezier-aligned", "--ensemble", 2
    )
    assert code == 0, err
    table = pd.read_csv(runs / "out/tables/profiles.csv")
    assert table[table.t == 0].loss.nunique() == table[table.t == 1].loss.nunique() == 1
    assert table.factor_delta_deviation.isna().all()
    code, _, err = script("connectivity", *flags, "--paths", "linear-factor")
    assert code == 2 and "in all" in err and "delta" in err and "lora_" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--paths", "bezier-fctor"), "Did you mean 'bezier-factor'"),
        (("--simplex", "1,2,9"), "minima 1 to 3, got 9"),
        (("--simplex", "1,2"), "three or more"),
        (("--tolerance", "-1"), "--tolerance"),
        (("--tolerance", "1e-9"), "--tolerance"),
        (("--ensemble", 1), "--ensemble"),
    ],
)
def test_bad_input_writes_nothing(script, runs, flags, words):
    before = sorted(runs.rglob("*"))
    code, _, err = script("connectivity", "--run", "seed0", *SMALL, *flags)
    assert code == 2 and words in err and err.count("\n") == 1
    assert sorted(runs.rglob("*")) == before


def test_simplex_of_a_run_in_python(runs):
    run = mc.load_run(runs / "seed0")
    point = Simplex(*(m.point for m in run.minima), space="delta")([0.2, 0.3, 0.5])
    assert run.objective("FOMC", num_examples=2)(point).loss > 0
