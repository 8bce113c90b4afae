"""A whole small study: pieces are files, damage is refused, what is there is not done again, answers are by hand."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import mcanalysis as mc
from mcanalysis.errors import DataError, DivergedError, RunDirectoryError, UserError
from mcanalysis.runs.result_file import FiledRun
from mcanalysis.runs.run import load_run
from mcanalysis.store.code_key import MEASURING, code_key
from mcanalysis.store.sealed import write_sealed
from mcanalysis.studies.claims.evidence import over_pairs
from mcanalysis.studies.claims.pieces import Found, _execution, _settings, absent_bases, carry_out, find
from mcanalysis.studies.claims.protocol import QUICK, Part
from mcanalysis.studies.claims.questions import barriers, forgotten, gain, methods, questions, scale
from mcanalysis.studies.claims.report import _head, write_report
from mcanalysis.studies.predictors import needs_old_data
from mcanalysis.studies.signals import base
from mcanalysis.studies.signals.base import Signal
from mcanalysis.training.config import TrainingConfig

SMALL = replace(
    QUICK,
    base=replace(
        QUICK.base, tasks=("FOMC", "NumGLUE-cm"), num_test=8, sizes={"train": 40, "eval": 8},
        training=TrainingConfig(num_steps=2, batch_size=4),
    ),
    num_points=3,
    num_examples=8,
    curve_steps=2,
    num_samples=4,
    parts=(
        Part("main", "", ("sequential", "er"), 2, {"paths": 2, "rewinding": 1}),
        Part("others", "", ("er",), 0),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory, tuned_with):
    folder = tmp_path_factory.mktemp("study")
    planned = SMALL.planned(SMALL.parts[0], tuned_with())
    there, missing = find(SMALL, planned, folder / "results", folder / "runs")
    assert not there and len(missing) == 4
    assert not list(carry_out(SMALL, missing, seconds=0.0))  # no time: none is begun
    return folder, planned, list(carry_out(SMALL, missing))


def test_what_is_there_counts_as_done_with_and_without_its_weights(done, tmp_path):
    folder, planned, found = done
    for runs in (folder / "runs", tmp_path / "elsewhere"):
        there, missing = find(SMALL, planned, folder / "results", runs)
        assert len(there) == 4 and not missing
        for one, other in zip(there, found, strict=True):
            assert one.labels == other.labels and one.seconds == other.seconds
            for name, table in one.tables.items():
                pd.testing.assert_frame_equal(table, other.tables[name])


def test_the_values_of_every_example_lie_in_one_folder_that_pandas_reads(done):
    """As the study's page says, and their means are what is kept; paths that two measures share are there once."""
    folder, planned, found = done
    values = pd.read_parquet(folder / "runs" / "values")
    assert set(values.run) == {p.name for p in planned}
    key = ["run", "space", "path", "start", "end", "split", "task", "t", "example"]
    assert not values.duplicated(key).any()
    own = values[values.run == planned[0].name]
    assert set(own.start) == {"1-FOMC", "0-BASE"}  # and so those of rewinding, too
    for row in found[0].tables["profiles"].to_dict("records"):
        if row["task"] in ("mean", "mean_old"):
            continue
        of = own[np.logical_and.reduce([own[name] == row[name] for name in key[1:7]])]
        for t, loss in zip(row["t"], row["loss"], strict=True):
            at = of[np.isclose(of.t, t)]
            assert np.average(at.loss, weights=at.targets) == pytest.approx(loss, rel=2e-4)


def test_what_is_kept_are_the_numbers_of_the_run(done):
    folder, planned, found = done
    run = load_run(folder / "runs" / "tuned" / planned[0].name)
    assert found[0].run.metrics == run.metrics
    wanted = {"path": "linear", "space": "delta", "task": "mean_old", "split": "test"}
    (path, *_) = [p for p in found[0].tables["profiles"].to_dict("records") if wanted.items() <= p.items()]
    old = run.minima[0].task
    profile = mc.profile(run.path(1, 2, space="delta"), run.objective(old, "test", 8), ts=path["t"])
    assert path["loss"] == pytest.approx([float(x) for x in profile.losses], rel=1e-4)
    assert {"rewinding_profiles", "barriers"} <= set(found[0].tables)
    assert "rewinding_profiles" not in found[-1].tables  # at one pair alone


@pytest.mark.parametrize("change", ["flip", "cut", "other"])
def test_damaged_measurements_and_those_of_another_training_are_refused(done, tmp_path, change):
    _, planned, found = done
    file = tmp_path / found[0].file.name
    text = found[0].file.read_text()
    if change == "other":
        text = found[1].file.read_text()
    file.write_text({"flip": text.replace("0.", "1.", 1), "cut": text[: len(text) // 2]}.get(change, text))
    run = FiledRun(found[0].run.directory)
    with pytest.raises(DataError, match="Expected"):
        Found(planned[0], run, file).tables  # noqa: B018


def test_without_its_result_file_a_piece_is_measured_again(done, tmp_path):
    folder, planned, found = done
    results = tmp_path / "results"
    shutil.copytree(folder / "results", results)
    (results / "tuned" / f"{planned[0].name}.json").unlink()
    there, missing = find(SMALL, planned, results, folder / "runs")
    assert len(there) == 3 and [p.name for p, _ in missing] == [planned[0].name]
    (again,) = carry_out(SMALL, missing)
    pd.testing.assert_frame_equal(again.tables["barriers"], found[0].tables["barriers"])


def test_measurements_of_another_protocol_are_refused(done, tmp_path):
    folder, planned, _ = done
    with pytest.raises(DataError, match="got others of paths, rewinding"):
        find(replace(SMALL, num_examples=9), planned, folder / "results", tmp_path)
    more = [replace(p, measured=(*p.measured, "line")) for p in planned[:1]]
    with pytest.raises(DataError, match="got others of line"):
        find(SMALL, more, folder / "results", tmp_path)


def test_a_run_that_diverges_is_left_out_and_said(done, tmp_path, monkeypatch, caplog):
    folder, planned, _ = done
    _, missing = find(SMALL, planned, tmp_path / "results", folder / "runs")

    def steps(self, turn=0):
        if self.strategy == "er":
            raise DivergedError("The loss is nan.")
        return load_run(self.directory)
        yield

    monkeypatch.setattr("mcanalysis.studies.training.Training.steps", steps)
    assert {p.planned.config.strategy for p in carry_out(SMALL, missing)} == {"sequential"}
    assert "er-seed0 has no result: The loss is nan." in caplog.text


def test_a_piece_that_fails_for_any_reason_keeps_no_other_from_being_made(done, tmp_path, monkeypatch, caplog):
    """A factorisation that does not converge, say: hours of other pieces are still to come."""
    folder, planned, _ = done
    _, missing = find(SMALL, planned, tmp_path / "results", folder / "runs")

    def steps(self, turn=0):
        if self.strategy == "er":
            raise RuntimeError("linalg.svd: the algorithm failed to converge")
        return load_run(self.directory)
        yield

    monkeypatch.setattr("mcanalysis.studies.training.Training.steps", steps)
    assert {p.planned.config.strategy for p in carry_out(SMALL, missing)} == {"sequential"}
    assert "er-seed0 has no result: linalg.svd" in caplog.text and "Traceback" in caplog.text


def test_scores_other_than_those_that_are_filed_keep_that_piece_missing_and_no_other(done, tmp_path, caplog):
    """A file of `compare.py`, say, whose run gives other scores here: nothing may lie beside it that others refuse."""
    folder, planned, _ = done
    results = tmp_path / "results"
    file = results / "tuned" / f"{planned[1].name}.json"
    file.parent.mkdir(parents=True)
    content = json.loads((folder / "results" / "tuned" / file.name).read_text())
    content["metrics"]["average_accuracy"] += 1e-9
    content.pop("sha256")
    write_sealed(file, content)
    there, missing = find(SMALL, planned, results, folder / "runs")
    assert not there and len(missing) == 4
    made = list(carry_out(SMALL, missing))
    assert sorted(p.planned.name for p in made) == sorted(p.name for p in planned if p is not planned[1])
    assert f"{planned[1].name} has no result: Expected" in caplog.text
    assert not file.with_suffix(".measured.json").exists()
    assert len(find(SMALL, planned, results, folder / "runs")[0]) == 3


def test_where_a_base_or_data_are_not_here_files_alone_are_pieces(done, tmp_path, monkeypatch):
    folder, planned, found = done

    def refused(*args, **kwargs):
        raise UserError("Expected a base, got none.")

    monkeypatch.setattr("mcanalysis.studies.claims.pieces.trainings", refused)
    there, missing = find(SMALL, planned, folder / "results", tmp_path)
    assert [p.labels for p in there] == [p.labels for p in found] and not missing
    pd.testing.assert_frame_equal(there[0].tables["barriers"], found[0].tables["barriers"])
    other = [replace(p, config=replace(p.config, lora_rank=3)) for p in planned]
    with pytest.raises(RunDirectoryError, match="got other lora_rank"):
        find(SMALL, other, folder / "results", tmp_path)
    with pytest.raises(DataError, match="got others of paths, rewinding"):
        find(replace(SMALL, num_examples=9), planned, folder / "results", tmp_path)
    results = tmp_path / "results"
    shutil.copytree(folder / "results", results)
    (results / "tuned" / f"{planned[0].name}.measured.json").unlink()
    with pytest.raises(UserError, match="got none"):
        find(SMALL, planned, results, tmp_path)


def test_bases_that_are_not_here_are_asked_for_where_a_piece_lacks_them(done, tmp_path):
    """The files of a fresh clone: the base is no part of it, and is not trained again for what is there."""
    folder, planned, _ = done
    on_base = [replace(p, config=replace(p.config, model="small")) for p in planned]
    there, missing = find(SMALL, on_base, folder / "results", tmp_path)
    assert len(there) == 4 and not missing
    assert [p.config.model for p in absent_bases(on_base, tmp_path)] == ["small"]
    there, missing = find(SMALL, on_base, tmp_path / "no results", tmp_path)
    assert not there and not missing


def test_runs_whose_early_signals_are_wanted_keep_snapshots_for_them(tuned_with):
    with_signals = replace(SMALL, parts=(Part("main", "", ("er",), 1, {"signals": 1}),))
    for steps, every in ((50, 5), (16, 1), (2, 1)):
        base = replace(SMALL.base, training=replace(SMALL.base.training, num_steps=steps))
        (planned,) = replace(with_signals, base=base).planned(with_signals.parts[0], tuned_with())
        assert _execution(planned).save_trajectory == every
        assert _execution(replace(planned, measured=("line",))).save_trajectory is None


def test_a_result_file_of_other_settings_is_refused(done, tmp_path):
    folder, planned, _ = done
    other = [replace(p, config=replace(p.config, lora_rank=3)) for p in planned]
    with pytest.raises(RunDirectoryError, match="lora_rank"):
        find(SMALL, other, folder / "results", tmp_path)


def test_the_report_answers_what_it_can_and_says_what_it_cannot(done, tmp_path):
    (tmp_path / "tables").mkdir()
    for name in ("of_before", "of_a_stranger"):
        (tmp_path / "tables" / f"{name}.csv").write_text("a,b")
    (tmp_path / "RESULTS.md").write_text("`tables/of_before.csv`:")
    report = write_report(done[2], tmp_path, {"main": 4, "others": 3})
    files = {f.name for f in (tmp_path / "tables").iterdir()}
    assert files == {f"{name}.csv" for name in report.tables} | {"of_a_stranger.csv"}
    page = report.page.read_text()
    assert "No piece that answers it is there yet." in page  # no signals were measured
    assert "main 4 of 4, others 0 of 3" in page and "**Not complete" in page
    assert all(f"({letter})" in page for letter in "abcdefghi")
    empty = write_report([], tmp_path / "empty", {})
    assert not empty.tables and "Pieces: none." in empty.page.read_text()


class Made:
    """A piece made by hand."""

    def __init__(self, pair, strategy, accuracy=0.5, fast=0.5, barriers=(), profiles=(), part="main", label=""):
        self.labels = {"part": part, "strategy": strategy, "label": label, "pair": pair, "seed": pair, "order": ""}
        self.planned = type("P", (), {"part": part})
        learners = {"fast": {"average_accuracy": fast}, "slow": {"average_accuracy": accuracy}}
        self.run = type("R", (), {"metrics": {"learners": learners}, "answering_learner": "slow"})
        self.tables = {"barriers": pd.DataFrame(barriers), "profiles": pd.DataFrame(profiles)}


def test_methods_are_differences_at_the_same_pair():
    made = [Made(p, "er", 0.5 + 0.1 * p) for p in range(3)]
    made += [Made(p, "ilora", 0.6 + 0.1 * p + 0.01 * p, fast=0.55 + 0.1 * p) for p in (2, 1, 0)]
    made += [Made(p, "ilora", 0.58 + 0.1 * p, part="ilora", label="no-consistency") for p in range(3)]
    found = methods.answer(made).tables
    (row,) = found["methods"].to_dict("records")
    assert (row["comparison"], row["mean"]) == ("I-LoRA − er", pytest.approx(0.11))
    parts = found["methods_parts"].set_index("comparison")["mean"]
    assert parts["average alone − both"] == pytest.approx(-0.03)
    assert parts["average alone − replay"] == pytest.approx(0.08)
    assert parts["consistency alone − replay"] == pytest.approx(0.05)


LINE = {"space": "delta", "path": "linear", "start": "1-A", "end": "2-B"}


def test_forgotten_without_a_barrier_is_counted_by_hand():
    curves = {"rises": [0.0, 0.2, 1.0], "stays": [0.0, 0.0, 0.01], "hill": [0.0, 2.0, 1.0]}
    made = [
        Made(
            0, name,
            barriers=[{**LINE, "task": "mean_old", "quantity": "loss", "chord_barrier": 1.5 * (name == "hill"),
                       "chord_barrier_high": 2.0}],
            profiles=[{**LINE, "task": "mean_old", "split": "test", "t": [0.0, 0.5, 1.0], "loss": loss}],
        )
        for name, loss in curves.items()
    ]  # fmt: skip
    table = forgotten.answer(made).tables["forgotten"]
    shares = {(row["what"].partition(" ")[0], row["strategy"]): row["mean"] for row in table.to_dict("records")}
    assert [shares["old", name] for name in curves] == [1.0, 0.0, 1.0]
    assert (shares["no", "rises"], shares["no", "hill"]) == (1.0, 0.0) and np.isnan(shares["no", "stays"])
    assert (shares["rise", "rises"], shares["rise", "hill"]) == (pytest.approx(0.2), pytest.approx(2.0))


def test_the_gain_is_over_the_end_that_eval_prefers():
    """On test the other end is the better one, by luck: the gain is 0.3 − 0.1, not 0.3 − 0.4."""
    row = {**LINE, "task": "mean", "t": [0.0, 0.5, 1.0]}
    profiles = [row | {"split": "eval", "score": [0.5, 0.6, 0.4]}, row | {"split": "test", "score": [0.1, 0.3, 0.4]}]
    names = ("interpolation_gain", "interpolation_gain_low", "interpolation_gain_high")
    barrier = {**LINE, "task": "mean", "quantity": "score", "t_star": 0.5} | dict(
        zip(names, (-0.1, -0.2, -0.05), strict=True)
    )
    made = [Made(p, "er", barriers=[barrier], profiles=profiles) for p in range(3)]
    (found,) = gain.answer(made).tables["gain"].to_dict("records")
    assert (found["mean"], found["interpolation_gain"]) == (pytest.approx(0.2), pytest.approx(-0.1))
    assert (found["above"], found["below"]) == (0.0, 1.0)
    ends = [row | {"split": "eval", "score": [0.9, 0.5, 0.4]}, row | {"split": "test", "score": [0.8, 0.6, 0.1]}]
    (found,) = gain.answer([Made(p, "er", barriers=[barrier], profiles=ends) for p in range(3)]).tables["gain"]["mean"]
    assert found == pytest.approx(-0.2)  # an end is no point between
    level = [row | {"split": split, "score": [0.5, 0.5, 0.5]} for split in ("eval", "test")]
    (found,) = gain.answer([Made(p, "er", barriers=[barrier], profiles=level) for p in range(3)]).tables["gain"]["mean"]
    assert found == 0.0


def test_t_is_foretold_from_other_pairs_and_judged_by_what_it_gains():
    """t* is 1/4 where the signal is low and 3/4 where it is high; S̄ there is 0.2 over the end, elsewhere 0."""
    ts, made = [0.0, 0.25, 0.5, 0.75, 1.0], []
    signal = next(name for name, old in needs_old_data().items() if not old)
    for pair in range(4):
        profiles, signals = [], []
        for k, high in enumerate((0, 1, 0, 1)):
            row = {**LINE, "start": f"{k + 1}-A", "end": f"{k + 2}-B"}
            score = [0.5 + 0.2 * (t == (0.75 if high else 0.25)) for t in ts]
            profiles += [row | {"task": "mean", "t": ts, "split": split, "score": score} for split in ("eval", "test")]
            signals.append({"start": row["start"], "end": row["end"], "space": "factor", signal: float(high)})
        made.append(Made(pair, "er", profiles=profiles))
        made[-1].tables["signals"] = pd.DataFrame(signals)
    found = gain.foretold(made, gain.over_the_end_of_eval(made)).set_index("rule")["mean"]
    assert found["signals without old data"] == found["eval's best t"] == pytest.approx(0.2)
    assert found["t = 1/2"] == found["mean t* of other pairs"] == pytest.approx(0.0)
    assert found["signals − mean t*"] == pytest.approx(0.2)


def barrier_rows(pair, heights, task="mean_old", label=""):
    rows = [{**LINE, "start": f"{k}-A", "end": f"{k + 1}-B", "task": task, "quantity": "loss", "chord_barrier": height,
             "mean_barrier": height, "max_barrier": height} for k, height in enumerate(heights, start=1)]  # fmt: skip
    return Made(pair, "er", barriers=rows, label=label)


def test_what_is_not_finite_is_no_low_barrier():
    """Of four transitions two have a barrier, and one of the two others has no finite one: 2 of 3."""
    made = [barrier_rows(p, [1.0, 1.0, 0.0, np.nan]) for p in range(3)]
    (words,) = barriers.answer(made).words
    assert "of 9 transitions" in words and "a share of +0.67 have" in words and "(3 more have none" in words
    uneven = [barrier_rows(0, [1.0] + [np.nan] * 6), barrier_rows(1, [0.0] * 7), barrier_rows(2, [0.0] * 7)]
    (words,) = barriers.answer(uneven).words
    assert "of 15 transitions" in words and "a share of +0.07 [" in words
    assert barriers.answer([barrier_rows(p, [np.nan]) for p in range(3)]).words  # and nothing but such says so


def test_a_barrier_between_two_tasks_is_that_of_the_starts_own():
    made = [barrier_rows(p, [0.5]) for p in range(3)]
    for piece in made:
        own = piece.tables["barriers"].assign(task="A", chord_barrier=0.25)
        piece.tables["barriers"] = pd.concat([piece.tables["barriers"], own, own.assign(task="C", chord_barrier=9.0)])
    answer = barriers.answer(made)
    (row,) = answer.tables["barriers_by_tasks"].to_dict("records")
    assert (row["tasks"], row["mean"], row["pairs"]) == ("A → B", 0.25, 3)
    assert (
        barriers.answer(made[:2]).tables["barriers_by_tasks"].empty
        and "(1 moves came" in barriers.answer(made[:2]).note
    )


def test_bounds_are_no_rivals_and_the_real_model_has_an_answer():
    scores = {("main", "ilora"): 0.6, ("main", "er"): 0.5, ("others", "gem"): 0.4, ("others", "joint"): 0.9,
              ("others", "mc_sgd"): 0.7, ("real", "ilora"): 0.8, ("real", "er"): 0.5}  # fmt: skip
    made = [
        Made(p, name, of + 0.01 * p * (name == "ilora"), part=part)
        for (part, name), of in scores.items()
        for p in range(4)
    ]
    tables = methods.answer(made).tables
    assert tables["methods_others"].comparison.tolist() == ["I-LoRA − gem"]
    assert tables["methods_bounds"].comparison.tolist() == ["I-LoRA − joint", "I-LoRA − mc_sgd"]
    (real,) = tables["methods_real"].to_dict("records")
    assert (real["comparison"], real["mean"], real["pairs"]) == ("I-LoRA − er", pytest.approx(0.315), 4)
    assert methods.answer([Made(0, "ilora")]).tables["methods"].empty  # so far nothing to compare with


def test_a_level_is_compared_with_the_main_run_of_its_pair_and_a_hill_is_no_slope():
    scores = {"": 0.7, "rate-third": 0.5, "rate-triple": 0.5}
    made = [Made(p, "er", of + 0.1 * p + 0.01 * p * (label == ""), part="scale" if label else "main", label=label)
            for label, of in scores.items() for p in range(4)]  # fmt: skip
    for piece in made:
        row = {**LINE, "task": "mean", "quantity": "score", "chord_barrier": 0.0}
        piece.tables["barriers"] = pd.DataFrame([row])
        piece.tables["profiles"] = pd.DataFrame(
            [row | {"split": s, "t": [0, 0.5, 1], "score": [0.5] * 3} for s in ("eval", "test")]
        )
    tables = scale.answer(made).tables
    changes = tables["scale_changes"].query("quantity == 'accuracy'").set_index("label")
    assert changes["mean"].to_dict() == pytest.approx({"rate-third": -0.215, "rate-triple": -0.215})
    assert tables["scale"].query("quantity == 'accuracy'")["mean"].iloc[0] == pytest.approx(0.0)
    lacking = scale.answer([piece for piece in made if piece.labels["label"] != "rate-triple"]).tables["scale"]
    assert lacking.query("quantity == 'accuracy'")["mean"].isna().all()


def test_changes_are_of_a_pairs_mean_over_transitions_and_not_of_all_with_all():
    """Two transitions, one of the changed run's undefined: 1.0 − mean(0.2, 0.4), once for each pair."""

    def of(pair, heights, **kwargs):
        rows = [{**LINE, "start": f"{k}-A", "task": "mean_old", "quantity": "loss", "chord_barrier": h}
                for k, h in enumerate(heights)]  # fmt: skip
        ends = [{**LINE, "task": "mean", "split": s, "t": [0, 0.5, 1], "score": [0.5] * 3} for s in ("eval", "test")]
        return Made(pair, "er", barriers=rows, profiles=ends, **kwargs)

    made = [of(p, [0.2, 0.4]) for p in range(3)]
    made += [of(p, [1.0, np.nan], part="scale", label="rank2") for p in range(3)]
    changes = scale.answer(made).tables["scale_changes"].query("quantity == 'chord_barrier'")
    (row,) = changes.to_dict("records")
    assert (row["pairs"], row["mean"], row.get("undefined", 0)) == (3, pytest.approx(0.7), 0)
    slopes = scale.answer(made).tables["scale"].query("quantity == 'chord_barrier'")
    assert slopes["without_slope"].tolist() == [3]


def test_a_question_that_fails_keeps_no_other_from_its_answer_and_no_table_is_lost(done, tmp_path, monkeypatch):
    report = write_report(done[2], tmp_path, {"main": 4})
    before = {file.name: file.read_bytes() for file in (tmp_path / "tables").iterdir()}

    def broken(found):
        raise IndexError("list index out of range")

    failing = [replace(q, answer=broken) if q.letter == "c" else q for q in questions()]
    monkeypatch.setattr("mcanalysis.studies.claims.report.questions", lambda: failing)
    again = write_report(done[2], tmp_path, {"main": 4})
    assert "It cannot be answered from these pieces (IndexError: list index out of range)" in again.page.read_text()
    assert set(again.tables) == set(report.tables) - {"curves"}
    after = {file.name: file.read_bytes() for file in (tmp_path / "tables").iterdir()}
    assert after == {name: content for name, content in before.items() if name != "curves.csv"}


def test_measurements_name_the_code_that_made_them(done, tmp_path):
    assert {piece.measuring_code for piece in done[2]} == {code_key(MEASURING)} != {code_key()}
    assert "the code that measures: 1" in "\n".join(_head(done[2], {}))
    old = json.loads(done[2][0].file.read_text())
    del old["code"], old["sha256"]  # as files of before have none
    write_sealed(tmp_path / "old.json", old)
    assert replace(done[2][0], file=tmp_path / "old.json").measuring_code == "not recorded"


def test_a_signal_that_is_installed_besides_makes_no_piece_another(tuned_with, monkeypatch):
    protocol = replace(SMALL, parts=(Part("main", "", ("er",), 1, {"signals": 1}),))
    (planned,) = protocol.planned(protocol.parts[0], tuned_with())
    before = _settings(protocol, planned)
    assert before["signals"]["versions"]["overlap"] == 2
    stranger = Signal("strange", lambda move: 1.0, cost="none", source="nobody")
    monkeypatch.setitem(base._SIGNALS._loaders, "strange", lambda: stranger)
    assert "strange" in base.signal_names() and _settings(protocol, planned) == before


def test_a_value_that_is_not_finite_is_counted():
    rows = pd.DataFrame({"path": "line", "pair": [0, 0, 1, 2], "gain": [0.1, np.nan, 0.2, 0.3]})
    (row,) = over_pairs(rows, "gain", ["path"]).to_dict("records")
    assert (row["undefined"], row["pairs"], row["mean"]) == (1, 3, pytest.approx(0.2))


def test_measurements_are_plain_json_with_their_settings(done):
    values = json.loads(done[2][0].file.read_text())
    assert values["measures"]["paths"]["num_points"] == 3 and set(values["measures"]) == {"paths", "rewinding"}
    assert values["seconds"] > 0 and len(values["sha256"]) == 64
