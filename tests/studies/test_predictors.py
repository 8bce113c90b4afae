"""Signals of a small run against plain PyTorch, what is kept, what is refused, and the tables against SciPy."""

import math
import types

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import mcanalysis as mc
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.params.directions import random_delta_direction
from mcanalysis.params.lora import delta_norm, delta_weights
from mcanalysis.params.low_rank import concatenate
from mcanalysis.params.point import flatten
from mcanalysis.studies import predictors
from mcanalysis.studies.predictors import Predictors, tables_of
from mcanalysis.studies.signals import Signal, get_signal, signal_names
from mcanalysis.studies.signals.base import _SIGNALS
from mcanalysis.studies.study import carry_out
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import train

TASKS = ("FOMC", "MedMCQA", "JEC-QA")
SMALL = {"num_examples": 4, "num_points": 3, "num_path_examples": 2}
QUICK = tuple(name for name in signal_names() if name != "basin_radius")


@pytest.fixture(scope="module")
def run(run_config, tmp_path_factory):
    config = run_config(tasks=TASKS, num_steps=20, sizes={"train": 8, "eval": 2, "test": 2})
    directory = tmp_path_factory.mktemp("runs") / "run"
    train(config, directory, device="cpu", execution=Execution(save_trajectory=1))
    return mc.load_run(directory, "cpu")


@pytest.fixture(scope="module")
def found(run):
    return mc.signals(run, 2, num_examples=4)


def losses_of(model, examples):
    """Log-probabilities of the answers' positions, and the mean loss, by a plain forward pass of each example."""
    logs, total, number = [], 0.0, 0
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        at = len(example.prompt_ids) - 1
        own = model(ids).logits[0].log_softmax(-1)[at : at + len(example.answer_ids)]
        logs.append(own)
        total = total - own[torch.arange(len(own)), torch.tensor(example.answer_ids)].sum()
        number += len(own)
    return torch.cat(logs), total / number


def encoded(run, task, number):
    return run.task_objective(task, "train", number).encoded


def test_divergence_and_losses_are_those_of_plain_pytorch(run, found, plain_model_at):
    start, end = (run.minimum(k).point for k in (2, 3))
    new = encoded(run, "JEC-QA", 4)
    with torch.no_grad():
        p, loss = losses_of(plain_model_at(start), new)
        q, _ = losses_of(plain_model_at(end), new)
        _, base = losses_of(plain_model_at(None), new)
    assert found["kl_new"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert found["new_loss_start"] == pytest.approx(float(loss), rel=1e-4)
    assert found["new_loss_base"] == pytest.approx(float(base), rel=1e-4)


def test_gradients_and_what_they_foretell_are_finite_differences(run, found):
    start, end = (run.minimum(k).point for k in (2, 3))
    gradients, along = {}, []
    for name, tasks, number in (("new", ["JEC-QA"], 4), ("old", ["FOMC", "MedMCQA"], 2)):
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in start.items()}
        sum(loss(leaves) for loss in run.batch_losses(tasks, "train", number)).backward()
        gradients[name] = flatten({key: leaf.grad for key, leaf in leaves.items()}).double()
        along = run.batch_losses(tasks, "train", number)
    cosine = torch.nn.functional.cosine_similarity(gradients["new"], gradients["old"], dim=0)
    assert found["gradient_conflict"] == pytest.approx(float(cosine), abs=1e-4)
    step = flatten({key: end[key] - start[key] for key in start}).double()
    assert found["foretold_first"] == pytest.approx(float(gradients["old"] @ step), rel=1e-3, abs=1e-6)
    wide = {key: (start[key].double(), (end[key] - start[key]).double()) for key in start}

    def slope(t):
        leaves = {key: (a + t * d).float().requires_grad_() for key, (a, d) in wide.items()}
        sum(loss(leaves) for loss in along).backward()
        return sum(float((leaf.grad.double() * wide[key][1]).sum()) for key, leaf in leaves.items())

    form = (slope(0.02) - slope(-0.02)) / 0.04
    assert found["foretold_second"] == pytest.approx(form / 2, rel=0.05, abs=1e-4)
    assert found["foretold_curvature"] == pytest.approx(2 * found["foretold_second"] / float(step @ step), rel=1e-4)
    assert found["foretold_rise"] == pytest.approx(found["foretold_first"] + found["foretold_second"])


def test_that_two_updates_have_the_minimum_between_them_in_common_is_no_overlap():
    """Of random steps of rank r one half of their 2r directions is always shared; of their leading ones few are."""
    names = [f"{i}.q.lora_{f}.weight" for i in range(4) for f in "AB"]
    draw = np.random.default_rng(0)
    sizes = (1.0, 0.05, 5.0)  # of the three minima: the first update is the first minimum, the second the third
    minima = [
        {name: torch.tensor(draw.normal(size=(4, 64) if ".lora_A" in name else (64, 4)) * size) for name in names}
        for size in sizes
    ]
    move = types.SimpleNamespace(
        start=minima[1],
        update=concatenate([minima[2], minima[1]], [1.0, -1.0]),
        previous=concatenate([minima[1], minima[0]], [1.0, -1.0]),
    )
    found = get_signal("overlap").of(move)
    assert max(found.values()) < 0.15  # by chance 4/64
    assert get_signal("overlap").of(types.SimpleNamespace(**vars(move) | {"previous": move.update})) == pytest.approx(
        {"overlap_column": 1.0, "overlap_row": 1.0}
    )


def test_signals_of_weights_are_those_of_dense_matrices(run, found):
    first, start, end = (delta_weights(run.minimum(k).point) for k in (1, 2, 3))
    ranks, overlaps, intruders, squared = [], [], [], 0.0
    rank = run.config["lora_rank"]
    for module in start:
        update, before = (end[module] - start[module]).double().numpy(), (start[module] - first[module]).numpy()
        squared += (update**2).sum()
        U, S, _ = np.linalg.svd(update)
        kept = S[1e-6 * S[0] < S]
        ranks.append(math.exp(stats.entropy(kept)))
        V = np.linalg.svd(before.astype(float))[0]
        overlaps.append(((U[:, :rank].T @ V[:, :rank]) ** 2).sum() / rank)
        base = dict(run.model.peft.named_parameters())[f"base_model.model.{module}.base_layer.weight"].detach().numpy()
        old, new = (np.linalg.svd(w.astype(float), full_matrices=False)[0] for w in (base, base + end[module].numpy()))
        intruders.append((np.abs(new[:, :10].T @ old).max(axis=1) < 0.5).sum())
    assert found["distance_delta"] == pytest.approx(math.sqrt(squared), rel=1e-4)
    assert found["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-3)
    assert found["overlap_column"] == pytest.approx(np.mean(overlaps), rel=1e-2)
    assert found["intruders_base"] == pytest.approx(np.mean(intruders))
    assert found["position"] == 2 and 0 <= found["bures_wasserstein"] <= math.sqrt(2)
    assert found["early_distance"] > 0 and -0.1 < found["cka_drop"] < 1.5


def test_basin_radius_is_where_the_plain_loss_has_risen(run, found, plain_model_at):
    start = run.minimum(2).point
    old = [encoded(run, task, 2) for task in TASKS[:2]]
    length = math.sqrt(sum(float(w.double().square().sum()) for w in delta_weights(start).values()))

    def likelihood(step, direction):
        moved = concatenate([start, direction], [1.0, step * length / delta_norm(direction)])
        with torch.no_grad():
            return math.exp(-np.mean([float(losses_of(plain_model_at(moved), of_task)[1]) for of_task in old]))

    logs = []
    for seed in (0, 1):
        direction = random_delta_direction(start, torch.Generator().manual_seed(seed))
        before = at_zero = likelihood(0.0, direction)
        left = 0.0
        for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0):
            here = likelihood(step, direction)
            if here < math.exp(-0.05) * at_zero:
                left += (before - math.exp(-0.05) * at_zero) / (before - here) * (step - left)
                break
            left, before = step, here
        logs.append(math.log(left))
    assert found["basin_radius"] == pytest.approx(length * math.exp(np.mean(logs)), rel=1e-3)


def test_no_old_data_is_looked_at_by_signals_that_say_so(run, monkeypatch):
    names = [name for name in signal_names() if not get_signal(name).needs_old_data]
    asked = set()
    objective, losses = type(run).task_objective, type(run).batch_losses
    monkeypatch.setattr(type(run), "task_objective", lambda r, t, *a: asked.add(t) or objective(r, t, *a))
    monkeypatch.setattr(type(run), "batch_losses", lambda r, t, *a: asked.update(t) or losses(r, t, *a))
    mc.signals(run, 2, names, num_examples=4)
    assert asked == {"JEC-QA"}


def test_what_is_asked_wrongly_is_refused(run):
    with pytest.raises(UserError, match="transition from 1 to 2"):
        mc.signals(run, 3)
    with pytest.raises(UnknownNameError, match="Did you mean 'kl_new'"):
        mc.signals(run, 1, ["kl_nwe"])
    with pytest.raises(UserError, match="at least 4 examples"):
        mc.signals(run, 1, num_examples=3)
    wrong = Signal("wrong", lambda move: {"a": 1.0}, "none", "here", parts=("b",))
    with pytest.raises(UserError, match="wrong_b, got wrong_a"):
        wrong.of(None)  # type: ignore[arg-type]


def test_too_few_transitions_are_refused_before_anything_is_measured(run, monkeypatch):
    monkeypatch.setattr(Predictors, "measure", lambda *a: pytest.fail("measured"))
    with pytest.raises(UserError, match=r"at least \d+ transitions of 3 runs or more.*got 2 of 1; add runs") as refusal:
        carry_out(Predictors(**SMALL), [run], run.directory.parent)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="name fewer --signals"):
        Predictors().check_all([types.SimpleNamespace(minima=range(20))] * 2)  # type: ignore[list-item]
    Predictors().check_all([types.SimpleNamespace(minima=range(8))] * 9)  # type: ignore[list-item]


def test_a_run_is_measured_once_and_a_signal_of_a_stranger_alone_is_added(run, monkeypatch):
    monkeypatch.setattr(predictors.Predictors, "check_all", lambda *a: None)
    study = Predictors(signals=QUICK, **SMALL)
    tables = carry_out(study, [run], run.directory.parent).tables
    table = tables["signals"]
    assert table.end.tolist() == ["2-MedMCQA", "3-JEC-QA"]
    direct = mc.signals(run, 2, QUICK, num_examples=4)
    assert {name: table[name][1] for name in direct} == pytest.approx(direct, rel=1e-5, nan_ok=True)
    row, loss = table.iloc[1], {}
    for task in TASKS:
        loss[task] = [run.objective(task, num_examples=2)(run.path(2, 3)(t)).loss for t in (0.0, 0.5, 1.0)]
    assert row.forgetting == pytest.approx(np.mean([loss[t][2] - loss[t][0] for t in TASKS[:2]]), abs=1e-5)
    chords = [max(0.0, middle - (a + b) / 2) for a, middle, b in loss.values()]
    assert row.barrier == pytest.approx(np.mean(chords), abs=1e-5)

    monkeypatch.setattr(Engine, "measure", lambda *a: pytest.fail("measured again"))
    monkeypatch.setattr(Signal, "of", lambda *a: pytest.fail("computed again"))
    again = carry_out(study, [run], run.directory.parent).tables["signals"]
    pd.testing.assert_frame_equal(again, table)
    monkeypatch.undo()
    monkeypatch.setattr(predictors.Predictors, "check_all", lambda *a: None)
    monkeypatch.setitem(_SIGNALS._loaders, "mine", lambda: Signal("mine", lambda move: move.number / 2, "none", "me"))
    computed = []
    of = Signal.of
    monkeypatch.setattr(Signal, "of", lambda signal, move: computed.append(signal.name) or of(signal, move))
    added = carry_out(Predictors(signals=(*QUICK, "mine"), **SMALL), [run], run.directory.parent).tables["signals"]
    assert computed == ["mine", "mine"] and added.mine.tolist() == [0.5, 1.0]


def made_up(num_runs=6, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_runs):
        strategy = "er" if number % 2 else "sequential"
        for k in range(1, 8):
            kl = rng.random()
            rows.append({"strategy": strategy, "learner": "fast", "seed": number, "space": "factor", "start": k,
                         "end": k + 1, "forgetting": kl + 0.1 * rng.random(), "score_forgetting": rng.random(),
                         "barrier": float("nan"), "gain": 0.0, "kl_new": kl, "cka_drop": rng.random(),
                         "position": float(k)})  # fmt: skip
    return pd.DataFrame(rows)


def test_tables_say_what_predicts_and_correct_for_the_number_of_signals():
    signals = made_up()
    found = tables_of(signals)
    pooled = found["predictor_correlations"].query("outcome == 'forgetting' and over == 'all'").set_index("signal")
    assert pooled.rho["kl_new"] == pytest.approx(stats.spearmanr(signals.kl_new, signals.forgetting)[0])
    assert pooled.needs_old_data.to_dict() == {"cka_drop": True, "kl_new": False, "position": False}
    assert pooled.p_holm["kl_new"] == pytest.approx(3 * pooled.p["kl_new"]) and pooled.p_holm["kl_new"] < 0.01
    assert (pooled.p_holm >= pooled.p).all() and pooled.num_runs.tolist() == [6, 6, 6]
    alone = found["predictor_correlations"].query("outcome == 'forgetting' and over == 'er'")
    assert set(alone.n) == {21} and set(alone.num_runs) == {3}
    assert found["predictor_correlations"].query("outcome in ('barrier', 'gain')").rho.isna().all()
    within = found["predictor_correlations"].query("over == 'within transitions' and outcome == 'forgetting'")
    ranks = signals.groupby("start")[["kl_new", "forgetting"]].rank()  # of one number in each, so ρ of these
    assert within.set_index("signal").rho["kl_new"] == pytest.approx(np.corrcoef(ranks.kl_new, ranks.forgetting)[0, 1])
    assert math.isnan(within.set_index("signal").rho["position"])
    out = found["predictor_out_of_run"].set_index(["outcome", "signals"])
    assert out.r2["forgetting", "kl_new"] > 0.8 > 0.2 > out.r2["score_forgetting", "all signals"]
    y = signals.pivot(index="seed", columns="start", values="forgetting").to_numpy()
    others = [np.delete(y, g, axis=0) for g in range(len(y))]
    errors = [[((y[g] - o.mean(axis=axis)) ** 2).sum() for g, o in enumerate(others)] for axis in (0, None)]
    assert out.r2["forgetting", "the same transition"] == pytest.approx(1 - sum(errors[0]) / sum(errors[1]))
    alike = [np.delete(y[g % 2 :: 2], g // 2, axis=0) for g in range(len(y))]
    of_strategy = sum(((y[g] - o.mean()) ** 2).sum() for g, o in enumerate(alike))
    assert out.r2["forgetting", "the same strategy"] == pytest.approx(1 - of_strategy / sum(errors[1]))
    assert out.rho["forgetting", "without old data"] > 0.4 and out.n["barrier", "kl_new"] == 0


def test_a_transition_is_its_two_tasks_whatever_came_before_and_one_of_its_own_is_left_out():
    signals = made_up()
    signals["start"], signals["end"] = ([f"{k}-{name}{k}" for k in signals.start] for name in "AB")
    moved = signals.copy()
    moved["start"] = [f"{9 - seed}-A{k.partition('A')[2]}" for k, seed in zip(signals.start, signals.seed, strict=True)]
    same = [tables_of(of)["predictor_out_of_run"].set_index(["outcome", "signals"]) for of in (signals, moved)]
    pd.testing.assert_frame_equal(*same)
    alone = signals.copy()
    alone.loc[0, "end"] = "7-C"
    y, k, run = alone.forgetting.to_numpy(), alone.start.to_numpy(), alone.seed.to_numpy()
    guess = np.array([y[(k == k[i]) & (run != run[i]) & (alone.end != "7-C")].mean() for i in range(1, len(y))])
    mean = np.array([y[run != own].mean() for own in run])
    found = tables_of(alone)["predictor_out_of_run"].set_index(["outcome", "signals"])
    expected = 1 - ((y[1:] - guess) ** 2).sum() / ((y[1:] - mean[1:]) ** 2).sum()
    assert found.r2["forgetting", "the same transition"] == pytest.approx(expected)
    assert found.n["forgetting", "the same transition"] == len(y) - 1
    assert found.rho["forgetting", "the same transition"] == pytest.approx(
        stats.spearmanr(guess - mean[1:], y[1:] - mean[1:])[0]
    )


def test_what_no_other_run_has_is_no_baseline_and_noise_is_not_ranked_backwards():
    """Runs of a strategy each have no other of it; and the others' mean, low where a run is high, is no prediction."""
    rng, rhos = np.random.default_rng(0), []
    for _ in range(60):
        rows = [
            {"strategy": f"s{run}", "learner": "fast", "seed": 0, "start": k, "end": k + 1, "kl_new": rng.normal(),
             **{outcome: rng.normal() for outcome in predictors.OUTCOMES}}
            for run in range(6) for k in range(7)
        ]  # fmt: skip
        found = tables_of(pd.DataFrame(rows))["predictor_out_of_run"].set_index(["outcome", "signals"])
        assert np.isnan(found.loc[("forgetting", "the same strategy"), ["r2", "rho"]].astype(float)).all()
        assert found.n["forgetting", "the same strategy"] == 0
        rhos += found.rho.xs("kl_new", level="signals").to_list()
    assert np.mean(rhos) > -0.09  # of the predictions as they are: -0.19


def test_words_and_picture_name_the_signals():
    from mcanalysis.plotting.predictors import plot_predictors, predictors_picture

    signals = made_up()
    tables = {"signals": signals, **tables_of(signals)}
    said = "\n".join(map(str, Predictors().words(tables)))
    assert "kl_new" in said and "without old data: R² out of run" in said
    picture = predictors_picture(tables["predictor_correlations"], tables["predictor_out_of_run"], signals)
    assert "42 transitions of 6 runs (sequential, er; factor space)" in picture.caption
    axes = plot_predictors(tables["predictor_correlations"]).axes
    shown = {c.get_gid(): c.get_offsets() for c in axes[0].collections if c.get_gid()}
    rho = tables["predictor_correlations"].query("outcome == 'forgetting' and over == 'all'").rho
    assert sorted(shown["forgetting all"][:, 0]) == pytest.approx(sorted(rho))
    with pytest.raises(UserError, match=r"predictors\.py"):
        plot_predictors(tables["predictor_correlations"].iloc[:0])
