"""The base as minimum 0 of small runs: against plain transformers, row 0 of the matrix, and the tables of before."""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.explore.walk import start_walk, walkable_kinds
from mcanalysis.params.lora import delta_weights
from mcanalysis.plotting.ternary import plot_ternary
from mcanalysis.runs.run import load_run
from mcanalysis.store.manifest import write_manifest
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.landscape.study import Landscape
from mcanalysis.studies.study import carry_out
from mcanalysis.training.continual_trainer import train

TASKS = ("FOMC", "MedMCQA", "JEC-QA")


@dataclass(frozen=True)
class Undrawn(Connectivity):
    """Measures and draws nothing, which takes longer than all the rest here."""

    def pictures(self, tables, *words):
        return ()

    def pictures_of_all(self, tables):
        return ()


LINES = Undrawn(paths=("linear-factor",), num_points=3, num_examples=3, from_base=True)


@pytest.fixture(scope="module")
def make_run(run_config, tmp_path_factory):
    """make_run(strategy) -> the folder of a run of three tasks, trained once."""
    made = {}
    folder = tmp_path_factory.mktemp("runs")

    def make(strategy):
        if strategy not in made:
            config = run_config(strategy, num_steps=3, tasks=TASKS, sizes={"train": 8, "test": 3}, num_test=3)
            train(config, folder / strategy, device="cpu")
            made[strategy] = folder / strategy
        return made[strategy]

    return make


@pytest.fixture
def copied(make_run, tmp_path):
    """copied("ilora") -> a run of one's own."""
    return lambda strategy: load_run(shutil.copytree(make_run(strategy), tmp_path / strategy), "cpu")


@pytest.fixture
def calls(monkeypatch):
    """A list that grows by one with each evaluation of a point."""
    made = []
    measure = Engine.measure
    monkeypatch.setattr(Engine, "measure", lambda self, *asked: made.append(1) or measure(self, *asked))
    return made


def of(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def plain_loss(plain_model_at, alone, objective, point):
    """The loss of plain transformers, one unpadded example at a time."""
    model = plain_model_at(point)
    nll = [float(alone(model, example)[0].detach()) for example in objective.encoded]
    return sum(nll) / sum(len(example.answer_ids) for example in objective.encoded)


@pytest.mark.parametrize("strategy", [pytest.param("sequential", marks=pytest.mark.slow), "ilora", "o_lora"])
def test_the_base_is_a_minimum_by_every_name_and_one_line_leads_to_each(make_run, strategy, plain_model_at, alone):
    run = load_run(make_run(strategy), "cpu")
    objective = run.task_objective("FOMC", "test")
    for learner in run.learners:
        for name in (0, "base", "0-BASE"):
            base = run.minimum(name, learner)
            assert (base.label, base.key) == ("0-BASE", "base")
        for k in (1, 3):
            whole = delta_weights(run.minimum(k, learner).point)
            for space in ("factor", "delta", "aligned"):
                path = run.path("base", k, space, learner)
                for t in (0.0, 0.3, 1.0):
                    for module, change in delta_weights(path(t)).items():
                        assert float((change - t * whole[module]).abs().max()) <= 1e-6 * float(
                            whole[module].abs().max()
                        )
    found = run.objective("FOMC")
    base = found(run.minimum("base").point)
    assert base.loss == pytest.approx(plain_loss(plain_model_at, alone, objective, {}), rel=1e-5)
    path = run.path(3, "0-BASE")
    assert found(path(1.0)).loss == base.loss and found(path(0.0)).loss == found(run.minimum(3).point).loss  # exactly
    assert base.score == run.accuracy_matrix.FOMC[0]
    half = {n: x / 2 if ".lora_B." in n else x for n, x in run.minimum(3).point.items()}
    assert found(path(0.5)).loss == pytest.approx(plain_loss(plain_model_at, alone, objective, half), rel=1e-5)


def test_what_has_no_path_from_the_base_is_refused_in_one_line(copied):
    run = copied("sequential")
    with pytest.raises(UserError, match="got the base twice; name a minimum"):
        run.path("base", 0)
    with pytest.raises(UserError, match=r"curve between two minima.*Run\.ends"):
        run.curve("base", 1)
    with pytest.raises(UserError, match=r"among|0-BASE"):
        run.minimum(9)
    manifest = json.loads((run.directory / "manifest.json").read_text())
    for strategy in ("l2p", "progressive_prompts", "zero_shot"):
        manifest["config"]["strategy"] = strategy
        write_manifest(run.directory, manifest)
        for ask in (lambda r: r.minimum("base"), lambda r: r.path("base", 1)):
            with pytest.raises(UserError, match=f"got one of {strategy}, which has none"):
                ask(load_run(run.directory))


def test_tables_have_the_paths_from_the_base_and_nothing_else_moves(copied, calls, tmp_path):
    run = copied("sequential")
    before = carry_out(Undrawn(paths=("linear-factor",), num_points=3, num_examples=3), [run], tmp_path).tables
    calls.clear()
    tables = carry_out(LINES, [run], tmp_path).tables
    assert len(calls) == 3 + 3  # half-way to each minimum; of the base every task's eval split: row 0 has the others
    profiles, barriers = tables["profiles"], tables["barriers"]
    rewound = of(profiles, start="0-BASE")
    pd.testing.assert_frame_equal(profiles[profiles.start != "0-BASE"].reset_index(drop=True), before["profiles"])
    old_barriers = barriers[barriers.start != "0-BASE"].reset_index(drop=True)
    pd.testing.assert_frame_equal(old_barriers, before["barriers"])
    assert set(zip(rewound.path, rewound.space, strict=True)) == {("linear", "factor")}
    assert (rewound.factor_delta_deviation == 0).all()
    assert list(dict.fromkeys(rewound.end)) == ["1-FOMC", "2-MedMCQA", "3-JEC-QA"]
    roles = of(rewound, end="3-JEC-QA", t=0.0, split="test").set_index("task").role.to_dict()
    assert roles == {"FOMC": "old", "MedMCQA": "old", "JEC-QA": "new", "mean_old": "mean", "mean": "mean"}
    assert set(of(rewound, end="1-FOMC").task) == {"FOMC"}  # no old task, so no mean over them
    matrix = run.accuracy_matrix.set_index("after")
    for k, task in enumerate(TASKS, start=1):
        ends = of(rewound, end=f"{k}-{task}", split="test", task=task).set_index("t").score
        assert ends[0.0] == matrix.loc[0, task] and ends[1.0] == matrix.loc[k, task]
        last = of(rewound, end="3-JEC-QA", split="test", task=task, t=0.0).loss.item()
        assert last == of(rewound, end=f"{k}-{task}", split="test", task=task, t=0.0).loss.item()
    first = of(barriers, end="1-FOMC", start="0-BASE")
    assert first.interpolation_gain.isna().all()
    gain = of(barriers, end="3-JEC-QA", start="0-BASE", task="mean", quantity="score").iloc[0]
    assert gain.t_star == 0.5
    scores = of(rewound, end="3-JEC-QA", split="test", task="mean").set_index("t").score
    assert gain.interpolation_gain == pytest.approx(scores[0.5] - max(scores[0.0], scores[1.0]))
    over = tables["barriers_over_seeds"]
    assert set(over[over.end == "all"].start) == {"all", "0-BASE"}
    said = " ".join(part for part in LINES.words(tables) if isinstance(part, str))
    assert "rewinding" in said
    calls.clear()
    carry_out(LINES, [run], tmp_path)
    delta = Undrawn(paths=("linear-delta",), num_points=3, num_examples=3, from_base=True)
    assert of(carry_out(delta, [run], tmp_path).tables["profiles"], start="0-BASE").space.unique().tolist() == ["delta"]
    assert len(calls) == 2  # between the minima: from the base it is the same line


def test_joint_training_has_the_path_from_the_base_alone(copied, tmp_path):
    run = copied("joint")
    with pytest.raises(UserError, match="at least two minima"):
        carry_out(Undrawn(paths=("linear-factor",), num_points=2, num_examples=2), [run], tmp_path)
    study = Undrawn(paths=("bezier-factor", "linear-aligned"), num_points=2, num_examples=2, from_base=True)
    tables = carry_out(study, [run], tmp_path).tables
    profiles = tables["profiles"]
    assert set(zip(profiles.start, profiles.end, profiles.space, strict=True)) == {("0-BASE", "3-JOINT", "aligned")}
    assert set(of(profiles, role="old").task) == {"FOMC", "MedMCQA"} and set(of(profiles, role="new").task) == {
        "JEC-QA"
    }
    assert list(study.words(tables))
    walk = start_walk(run, "base", space="delta")
    assert (walk.end.label, walk.new, walk.old) == ("3-JOINT", "JEC-QA", ["FOMC", "MedMCQA"])


def test_beyond_the_ends_is_added_and_barriers_keep_every_bit(copied, calls, tmp_path):
    run = copied("sequential")
    before = carry_out(LINES, [run], tmp_path).tables
    calls.clear()
    far = replace(LINES, extrapolate=(-0.5, 1.7))
    after = carry_out(far, [run], tmp_path).tables
    assert len(calls) == 2 * (2 + 3)  # −0.5 and 1.5 on the paths of two transitions and on three from the base
    for name in ("barriers", "paths", "front", "barriers_over_seeds"):
        pd.testing.assert_frame_equal(after[name], before[name], check_exact=True)
    profiles = after["profiles"]
    inside = profiles[(profiles.t >= 0) & (profiles.t <= 1)].reset_index(drop=True)
    pd.testing.assert_frame_equal(inside, before["profiles"], check_exact=True)
    assert sorted(set(profiles.t)) == [-0.5, 0, 0.5, 1, 1.5]
    for _, of_task in profiles.groupby(["space", "start", "end", "split", "task"]):
        assert of_task.t.is_monotonic_increasing and len(of_task) == 5
    first, second = run.minimum(1).point, run.minimum(2).point
    by_hand = {n: -0.5 * first[n] + 1.5 * second[n] for n in first}  # t = 1.5 in the factors
    row = of(profiles, space="factor", start="1-FOMC", t=1.5, task="FOMC", split="test").iloc[0]
    assert row.loss == pytest.approx(run.objective("FOMC", num_examples=3)(by_hand).loss, rel=1e-5)
    assert row.loss_low <= row.loss <= row.loss_high and row.factor_delta_deviation > 0
    said = " ".join(part for part in far.words(after) if isinstance(part, str))
    assert "measured from t = -0.5 to 1.5" in said and "not finite" not in said
    broken = after["profiles"].copy()
    broken.loc[(broken.t == 1.5) & (broken.start == "1-FOMC"), "loss"] = np.inf
    said = [part for part in far.words(after | {"profiles": broken}) if isinstance(part, str)]
    assert "not finite beyond the ends of 1-FOMC → 2-MedMCQA, linear factor: loss or score at t = 1.5" in said
    assert start_walk(run, 1, 2).known_ts == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"extrapolate": (-0.5, 1.5)}, "straight paths with --extrapolate, got bezier-factor"),
        ({"extrapolate": (-0.5,), "paths": ("linear-factor",)}, "--extrapolate LOW,HIGH"),
        ({"extrapolate": (0.2, 1.5), "paths": ("linear-factor",)}, "around"),
        ({"extrapolate": (0.0, 1.0), "paths": ("linear-factor",)}, "a step of 0.05 beyond"),
        ({"extrapolate": (-0.5, 1.5), "paths": ("linear-factor",), "other_paths": ("polychain-delta",)}, "polychain"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Connectivity(**settings)


def test_planes_and_simplexes_with_the_base_are_in_delta(copied, tmp_path):
    run = copied("o_lora")  # minima of other ranks
    study = Undrawn(paths=("linear-delta",), num_points=2, num_examples=2, simplex=(0, 1, 3))
    simplex = carry_out(study, [run], tmp_path).tables["simplex"]
    assert set(simplex.space) == {"delta"} and simplex.minima[0] == "0-BASE 1-FOMC 3-JEC-QA"
    drawn = plot_ternary(simplex).findobj(lambda a: str(a.get_gid()).startswith("corner"))
    assert {text.get_text() for text in drawn} == {"0 BASE", "1 FOMC", "3 JEC-QA"}
    corner = of(simplex, w1=1.0, task="FOMC", split="test").loss.item()
    base = run.objective("FOMC", num_examples=2)(run.minimum("base").point)
    assert corner == pytest.approx(base.loss, rel=1e-6)
    small = Landscape(
        transition=1, from_base=True, grid=(2,), num_examples=2, num_directions=0, surface_grid=0, sharpness_samples=0
    )
    tables = carry_out(small, [run], tmp_path).tables
    plane = tables["landscape"]
    assert set(plane.space) == {"delta"}
    assert list(dict.fromkeys(plane[plane.anchor != ""].anchor)) == ["1-FOMC fast", "2-MedMCQA fast", "0-BASE"]
    at_base = of(plane, anchor="0-BASE", task="FOMC").iloc[0]
    assert at_base.loss == corner
    ends = [run.minimum(k).point for k in (1, 2)]
    sizes = [np.sqrt(sum(float(d.double().square().sum()) for d in delta_weights(p).values())) for p in ends]
    second = of(plane, anchor="2-MedMCQA fast", task="FOMC").iloc[0]
    far = [np.hypot(at_base.x, at_base.y), np.hypot(at_base.x - second.x, at_base.y - second.y)]
    assert far == pytest.approx(sizes, rel=1e-5)  # from ΔW = 0 to each
    assert "delta, as the base spans it" in " ".join(p for p in small.words(tables) if isinstance(p, str))
    with pytest.raises(UserError, match="--third and --from-base"):
        Landscape(from_base=True, third=str(run.directory))
    with pytest.raises(UserError, match="got aligned"):
        Landscape(from_base=True, space="aligned")


def test_a_walk_from_the_base_reads_and_measures(copied, tmp_path):
    run = copied("o_lora")
    carry_out(replace(LINES, paths=("linear-delta",)), [run], tmp_path)
    walk = start_walk(run, "base", 2, "delta")
    assert walk.known_ts == [0.0, 0.5, 1.0] and (walk.new, walk.old) == ("MedMCQA", ["FOMC"])
    assert "linear-factor" in walkable_kinds(run, *run.ends("base", 2))  # the base has the rank of the other end
    anew = start_walk(run, 0, 2, "factor").read(0.5).values.loc["FOMC", "loss"]
    assert anew == pytest.approx(walk.read(0.5).values.loc["FOMC", "loss"], rel=1e-5)
