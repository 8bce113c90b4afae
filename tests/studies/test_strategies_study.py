"""Tables over strategies and seeds, which settings go where, and what is trained when."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mcanalysis.benchmarks import get_benchmark
from mcanalysis.benchmarks.orders import in_order
from mcanalysis.errors import DataError, RunDirectoryError, UnknownNameError, UserError
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.runs.general import General
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.manifest import mark_finished, new_manifest, write_manifest
from mcanalysis.strategies import strategy_names
from mcanalysis.studies import strategy_tables, training
from mcanalysis.studies.curvature import Curvature
from mcanalysis.studies.strategies import run_directories, study_configs, train_runs
from mcanalysis.studies.strategy_tables import (
    METRICS,
    comparison_table,
    summary_cells,
    summary_table,
)
from mcanalysis.studies.strategy_words import write_comparison
from mcanalysis.studies.study import carry_out
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


def test_a_setting_with_a_strategy_before_it_goes_there_alone_and_counts_for_more():
    settings = {"er.memory_size": 7, "memory_size": 30}
    configs = study_configs(RunConfig(), ["er", "ilora"], [0], settings)
    assert [dict(c.strategy_settings) for c in configs] == [{"memory_size": 7}, {"memory_size": 30}]
    with pytest.raises(UnknownNameError, match=r"Unknown strategy 'ert'\. Did you mean 'er'"):
        study_configs(RunConfig(), ["er"], [0], {"ert.memory_size": 7})
    (alone,) = study_configs(RunConfig(), ["er"], [0], {"ilora.ema_decay": 0.8})  # of a file for both
    assert not alone.strategy_settings
    with pytest.raises(UnknownNameError, match=r"Unknown setting of ilora"):
        study_configs(RunConfig(), ["er"], [0], {"ilora.ema_dekay": 0.8})
    with pytest.raises(UnknownNameError, match=r"Unknown setting of er 'memory_sise'\. Did you mean 'memory_size'"):
        study_configs(RunConfig(), ["er", "ilora"], [0], {"er.memory_sise": 7})
    with pytest.raises(UnknownNameError, match="ema_decay"):  # er has none, though ilora does
        study_configs(RunConfig(), ["er", "ilora"], [0], {"er.ema_decay": 0.5})
    with pytest.raises(UserError, match=r"ema_decay in \[0, 1\], got 5"):
        study_configs(RunConfig(), ["er", "ilora"], [0], {"ilora.ema_decay": 5})


def test_all_is_every_strategy_and_nothing_is_run_twice():
    assert [c.strategy for c in study_configs(RunConfig(), ["all"], [3])] == strategy_names()
    assert [c.seed for c in study_configs(RunConfig(), ["er", "er"], [1, 1, 2])] == [1, 2]
    with pytest.raises(UserError, match="at least one strategy"):
        study_configs(RunConfig(), [], [0])


@pytest.fixture
def fake_run(tmp_path):
    """fake_run(strategy, seed, {learner: rows of the matrix by number}, answering, order) -> a finished run."""

    def make(strategy, seed, matrices, answering=None, order=None, device="cpu", **cost):
        answering = answering or next(iter(matrices))
        directory = tmp_path / f"{strategy}-{seed}-{order}"
        (directory / "tables").mkdir(parents=True)
        for learner, rows in matrices.items():
            table = pd.DataFrame([[k, *row] for k, row in rows.items()], columns=["after", "A", "B"])
            suffix = "" if learner == answering else f"_{learner}"
            table.to_csv(directory / "tables" / f"accuracy_matrix{suffix}.csv", index=False)
        (directory / "tables" / "cost.json").write_text(json.dumps({"train_seconds": 2.0, **cost}))
        values = {m: 0.25 * (1 + seed) for m in METRICS} | {"forgetting": None}
        metrics = {**values, "learners": dict.fromkeys(matrices, values)}
        (directory / "tables" / "metrics.json").write_text(json.dumps(metrics))
        config = {"tasks": ["A", "B"], "benchmark": "embedded", "training": {"num_steps": 9}}
        config |= {"order": order} if order else {}
        manifest = new_manifest(config | {"strategy": strategy, "seed": seed}, execution={"device": device})
        write_manifest(directory, manifest)
        mark_finished(directory)
        return FinishedRun(directory)

    return make


NAN = float("nan")
ER = {0: [0.1, 0.2], 1: [0.8, 0.3], 2: [0.6, 0.7]}
JOINT = {0: [0.1, 0.2], 2: [0.9, 0.8]}  # a joint run has no row 1
INDIVIDUAL = {0: [0.1, 0.2], 1: [0.7, NAN], 2: [NAN, 0.9]}


def test_the_reference_is_joint_of_the_same_seed(fake_run):
    runs = [fake_run("er", 0, {"fast": ER}), fake_run("joint", 0, {"fast": JOINT}), fake_run("er", 1, {"fast": ER})]
    runs.append(fake_run("individual", 0, {"fast": INDIVIDUAL}))
    table = comparison_table(runs)
    assert list(table.reference) == ["joint"] * 4
    # by hand: ((0.9 − 0.8) + (0.8 − 0.7)) / 2 and (0.6 / 0.9 + 0.7 / 0.8) / 2
    assert table.intransigence[0] == pytest.approx(0.1)
    assert table.relative_gain[0] == pytest.approx((0.6 / 0.9 + 0.7 / 0.8) / 2)
    assert table.relative_gain[1] == pytest.approx(1.0)  # joint against itself
    assert np.isnan(table.intransigence[1])  # it has no diagonal
    assert np.isnan(table.intransigence[2]) and np.isnan(table.relative_gain[2])  # no joint run of seed 1
    assert table.intransigence[3] == pytest.approx(((0.9 - 0.7) + (0.8 - 0.9)) / 2)


def test_without_joint_the_reference_is_individual_and_each_learner_has_its_own_values(fake_run):
    slow = {k: [v + 0.1 for v in row] for k, row in ER.items()}
    runs = [fake_run("ilora", 0, {"fast": ER, "slow": slow}, "slow"), fake_run("individual", 0, {"fast": INDIVIDUAL})]
    table = comparison_table(runs).set_index(["strategy", "learner"])
    assert set(table.reference) == {"individual"}
    assert table.intransigence["ilora", "fast"] == pytest.approx(((0.7 - 0.8) + (0.9 - 0.7)) / 2)
    assert table.intransigence["ilora", "slow"] == pytest.approx(((0.7 - 0.9) + (0.9 - 0.8)) / 2)
    assert not table.answers["ilora", "fast"] and table.answers["ilora", "slow"]
    assert comparison_table(runs[:1]).reference.isna().all()


def test_the_summary_says_what_is_undefined_and_what_it_cost(fake_run, tmp_path):
    costs = {"evaluation_seconds": 1.0, "num_trained": 5}
    runs = [
        fake_run("er", s, {"fast": ER}, device="cuda", peak_memory_bytes=peak, **costs)
        for s, peak in enumerate((2_000_000, 4_000_000))
    ]
    runs.append(fake_run("ilora", 0, {"fast": ER, "slow": ER}, "slow", peak_memory_bytes=None, **costs))
    write_comparison(runs, tmp_path)
    summary = pd.read_csv(tmp_path / "comparison" / "summary.csv").set_index(["strategy", "learner"])
    assert summary.average_accuracy["er", "fast"] == pytest.approx(0.375)
    assert summary.average_accuracy_sd["er", "fast"] == pytest.approx(np.std([0.25, 0.5], ddof=1))
    assert summary.peak_memory_bytes["er", "fast"] == 3_000_000
    assert np.isnan(summary.peak_memory_bytes["ilora", "slow"])
    header, er, *ilora = summary_cells(summary_table(comparison_table(runs)))
    assert "forgetting" not in header  # undefined in every run
    by_title = dict(zip(header, er, strict=True))
    assert by_title["peak MB"] == "3 ± 1" and by_title["train s"] == "2.0 ± 0.0" and by_title["seeds"] == "2"
    assert by_title["learner"] == "fast" and [row[1] for row in ilora] == ["fast", "slow, answers"]
    assert ilora[0][header.index("average accuracy")] == "0.25" and ilora[0][header.index("peak MB")] == "–"
    text = (tmp_path / "comparison" / "summary.md").read_text()
    assert (
        text.startswith("| strategy | learner |") and "seeds 0, 1" in text and "2 tasks" in text and "9 steps" in text
    )
    assert len(pd.read_csv(tmp_path / "comparison" / "strategies.csv")) == 4


def test_what_a_process_holds_is_not_told_as_what_its_last_run_needed(fake_run):
    """On a CPU a process that trains one run after another still holds pages of the earlier ones."""
    table = comparison_table([fake_run("er", s, {"fast": ER}, peak_memory_bytes=700_000_000 + s) for s in (0, 1)])
    assert table.peak_memory_bytes.isna().all()
    assert "peak MB" not in summary_cells(summary_table(table))[0]


def test_what_is_kept_has_a_size_beside_its_number(fake_run):
    runs = [fake_run("er", 0, {"fast": ER}, memory_examples=100, memory_bytes=15_904)]
    runs.append(fake_run("der", 0, {"fast": ER}, memory_examples=100, memory_bytes=4_270_000))
    header, *rows = summary_cells(summary_table(comparison_table(runs)))
    shown = [(row[header.index("kept")], row[header.index("kept MB")]) for row in rows]
    assert shown == [("100", "0.02"), ("100", "4.27")]


def test_general_ability_of_an_adapter_per_task_is_not_that_of_the_last_one(fake_run, monkeypatch):
    monkeypatch.setattr(strategy_tables, "general_retention", lambda run, learner: 0.4)
    runs = [fake_run("er", 0, {"fast": ER}), fake_run("individual", 0, {"fast": INDIVIDUAL})]
    file = runs[1].directory / "tables" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"average_accuracy": None}))
    assert list(comparison_table(runs).general_retention.fillna(-1)) == [0.4, -1]


def test_a_caption_is_about_the_columns_and_rows_that_the_latex_table_has(fake_run, tmp_path):
    cost = {"forward_examples": 10, "backward_examples": 10, "memory_examples": 4, "memory_bytes": 800}
    runs = [fake_run(name, s, {"fast": ER}, order=o, **cost)
            for name in ("sequential", "er") for o in ("order1", "order2") for s in (0, 1)]  # fmt: skip
    runs += [fake_run("gem", s, {"fast": ER}, order="order1", **cost) for s in (0, 1)]
    write_comparison(runs, tmp_path, note="Tuned: by hand.")
    text = (tmp_path / "comparison" / "summary.tex").read_text()
    assert (
        "over 2 orders of the tasks, of each the mean over seeds 0, 1 (over seeds where there is one order: gem)"
        in text
    )
    assert "Tuned: by hand." in text and "kept: examples" in text and "cost: examples" in text
    assert not re.search("the row|answers|seconds are|intransigence|memory is", text)
    markdown = (tmp_path / "comparison" / "summary.md").read_text()
    assert "standard deviation over seeds 0, 1; " in markdown and "the row `mean`" in markdown


def test_orders_are_told_apart_and_averaged(fake_run, tmp_path):
    """Means of an order over its seeds, then over the orders; the reference is of the same seed and order."""
    better = {k: [v + 0.1 for v in row] for k, row in JOINT.items()}
    runs = [fake_run("er", s, {"fast": ER}, order=o) for o in ("order1", "order2") for s in (0, 1)]
    runs += [fake_run("er", 2, {"fast": ER}, order="order2"), fake_run("joint", 0, {"fast": JOINT}, order="order1")]
    runs.append(fake_run("joint", 0, {"fast": better}, order="order2"))
    table = write_comparison(runs, tmp_path)
    assert list(table["order"]) == ["order1"] * 2 + ["order2"] * 3 + ["order1", "order2"]
    assert table.intransigence[0] == pytest.approx(0.1) and table.intransigence[2] == pytest.approx(0.2)
    summary = pd.read_csv(tmp_path / "comparison" / "summary.csv").set_index(["strategy", "order"])
    assert list(summary.loc["er"].index) == ["order1", "order2", "mean"]
    one, two = np.mean([0.25, 0.5]), np.mean([0.25, 0.5, 0.75])
    assert summary.average_accuracy["er", "order2"] == pytest.approx(two)
    assert summary.average_accuracy["er", "mean"] == pytest.approx((one + two) / 2)
    assert summary.average_accuracy_sd["er", "mean"] == pytest.approx(np.std([one, two], ddof=1))
    assert list(summary.seeds["er"]) == [2, 3, 3]
    text = (tmp_path / "comparison" / "summary.md").read_text()
    assert text.startswith("| strategy | learner | order | seeds |") and "over the orders of their means" in text
    assert "| er | fast | mean | 3 |" in text  # no star: there is one learner


def test_what_has_no_orders_has_no_column_for_them(fake_run):
    table = comparison_table([fake_run("er", 0, {"fast": ER})])
    assert "order" not in table and "order" not in summary_table(table)


def test_cost_is_a_multiple_of_sequential_of_the_same_seed_and_order(fake_run, tmp_path):
    """By hand: (48 + 2 · 36) / (24 + 2 · 24), of order1; runs of before passes were counted have empty cells."""
    er = {"forward_examples": 48, "backward_examples": 36, "memory_examples": 7, "memory_bytes": 99}
    runs = [
        fake_run("er", 0, {"fast": ER}, order="order1", **er),
        fake_run("sequential", 0, {"fast": ER}, order="order1", forward_examples=24, backward_examples=24),
        fake_run("sequential", 0, {"fast": ER}, order="order2", forward_examples=9, backward_examples=9),
        fake_run("ewc", 0, {"fast": ER}, order="order1"),
        fake_run("er", 0, {"fast": ER}, order="order3", **er),
    ]
    table = write_comparison(runs, tmp_path)
    assert table.cost_ratio[:3].tolist() == pytest.approx([120 / 72, 1, 1]) and table.cost_ratio[3:].isna().all()
    summary = pd.read_csv(tmp_path / "comparison" / "summary.csv")
    wanted = {"cost_ratio", "forward_examples", "backward_examples", "memory_examples", "memory_bytes"}
    assert wanted < set(summary) and summary.memory_bytes[0] == 99
    header, row, *_ = summary_cells(summary)
    shown = dict(zip(header, row, strict=True))
    assert (shown["cost"], shown["kept"]) == ("1.67", "7") and "memory bytes" not in header
    assert "backward in training, as a multiple of `sequential`'s" in (tmp_path / "comparison/summary.md").read_text()
    before = comparison_table(runs[3:4])
    assert before[sorted(wanted)].isna().all(axis=None) and "cost" not in summary_cells(summary_table(before))[0]


def test_general_ability_is_the_mean_retention_after_the_last_task_by_learner(fake_run):
    run = fake_run("ilora", 0, {"fast": ER, "slow": ER}, "slow")
    rows = [
        (2, "fast", "a", 0.5),
        (2, "fast", "b", 1.0),
        (2, "slow", "a", 0.25),
        (2, "slow", "b", NAN),
        (1, "fast", "a", 0.9),
    ]
    table = pd.DataFrame(rows, columns=["after", "learner", "task", "retention"])
    table.to_csv(run.directory / "tables" / "general.csv", index=False)
    found = comparison_table([run, fake_run("er", 0, {"fast": ER})])
    assert found.general_retention[:2].tolist() == [0.75, 0.25] and np.isnan(found.general_retention[2])
    assert {"average_anytime_accuracy", "forward_transfer"} < set(found)


@pytest.fixture
def config(run_config):
    return run_config("sequential", num_steps=1, tasks=("FOMC",), sizes={"train": 4}, num_test=1)


def trained(configs, folder, **options):
    return train_runs(configs, run_directories(configs, folder), **options)


def test_runs_of_several_orders_are_trained_each_in_its_own(config, tmp_path):
    config = replace(config, tasks=("FOMC", "C-STANCE"))
    shuffled = [f"shuffled{n}" for n in range(1, 30)]
    embedded = get_benchmark("embedded")
    other = next(order for order in shuffled if in_order(embedded, order, config.tasks) == ["FOMC", "C-STANCE"])
    twin = next(order for order in shuffled if in_order(embedded, order, config.tasks) == ["C-STANCE", "FOMC"])
    configs = [replace(config, order=order) for order in ("paper", other)]
    runs = trained(configs, tmp_path)
    assert [r.directory.name for r in runs] == [f"embedded-{c.order}-sequential-seed0" for c in configs]
    assert [r.task_names for r in runs] == [["C-STANCE", "FOMC"], ["FOMC", "C-STANCE"]]
    assert [r.order for r in runs] == [c.order for c in configs]
    assert [list(r.tasks) for r in runs] == [r.task_names for r in runs]
    trained(configs, tmp_path)  # each is known again
    with pytest.raises(UserError, match=rf"one order of the tasks, .*, got paper and {other}; analyse one"):
        carry_out(Curvature(), runs, tmp_path)
    with pytest.raises(UserError, match=rf"that differ, got paper and {twin}, both C-STANCE, FOMC; leave one out"):
        trained([*configs, replace(config, order=twin)], tmp_path)


def test_what_is_finished_is_not_trained_again_and_what_is_not_is_refused_before_anything_starts(
    config, tmp_path, monkeypatch
):
    configs = [config, replace(config, seed=1)]
    started = []
    real = training.train
    monkeypatch.setattr(
        training, "train", lambda config, *rest, **more: started.append(config.seed) or real(config, *rest, **more)
    )
    assert [r.seed for r in trained(configs[:1], tmp_path)] == [0]
    assert [r.seed for r in trained(configs, tmp_path)] == [0, 1]
    trained(configs, tmp_path)
    assert started == [0, 1]
    manifest = tmp_path / "embedded-sequential-seed1" / "manifest.json"
    write_text_atomic(manifest, manifest.read_text().replace('"finished"', '"running"', 1))
    third = [*configs, replace(config, seed=2)]
    with pytest.raises(RunDirectoryError, match="seed1; pass --resume"):
        trained(third, tmp_path)
    assert not (tmp_path / "embedded-sequential-seed2").exists()
    trained(third, tmp_path, resume=True)
    assert started[2:] == [1, 2]


def test_general_tasks_are_measured_where_they_are_missing(config, tmp_path):
    for name in ("Facts", "Other"):
        (tmp_path / "general" / name).mkdir(parents=True)
        (tmp_path / "general" / name / "test.json").write_text(json.dumps([{"prompt": "one:", "answer": "two"}]))
    trained([config], tmp_path)
    general = General(str(tmp_path / "general"), ("Facts",))
    for _ in range(2):
        (run,) = trained([config], tmp_path, general=general)
        table = pd.read_csv(run.directory / "tables" / "general.csv")
        assert set(table.task) == {"Facts"} and table.after.tolist() == list(range(len(config.tasks) + 1))
    assert [t.task.name for t in General(str(tmp_path / "general")).load()] == ["Facts", "Other"]


@pytest.mark.parametrize(
    ("tasks", "error", "piece"),
    [(("Fact",), UnknownNameError, "Did you mean 'Facts'"), (None, DataError, "got no such folder; check --general")],
)
def test_general_tasks_that_are_not_there(tmp_path, tasks, error, piece):
    folder = tmp_path / ("general" if tasks else "nowhere")
    (tmp_path / "general" / "Facts").mkdir(parents=True)
    (tmp_path / "general" / "Facts" / "test.json").write_text("[]")
    with pytest.raises(error, match=piece):
        General(str(folder), tasks).load()


def test_a_folder_without_general_tasks(tmp_path):
    with pytest.raises(DataError, match=r"<TASK>/test.json or <TASK>.txt, in .*, got none"):
        General(str(tmp_path)).load()


def test_a_memory_that_is_counted_otherwise_is_said(caplog):
    """GEM's 256 examples of each task beside 100 of all is no comparison of equals."""
    study_configs(RunConfig(), ["er", "gem"], [0, 1], {"memory_size": 100})
    assert [record.getMessage() for record in caplog.records] == [
        "gem has no memory_size, but keeps 256 examples of each task: set gem.memory_per_task to give it the same "
        "memory as the others"
    ]
    caplog.clear()
    study_configs(RunConfig(), ["er", "gem"], [0], {"memory_size": 100, "gem.memory_per_task": 12})
    study_configs(RunConfig(), ["er", "sequential"], [0], {"memory_size": 100})
    assert not caplog.records
