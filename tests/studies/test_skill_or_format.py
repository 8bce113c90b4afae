"""Loss by first token and rest, score by what can be read and what is right: a small run against plain PyTorch."""

import json

import pandas as pd
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.metrics.scores import get_score
from mcanalysis.runs.run import load_run
from mcanalysis.studies import skill_or_format
from mcanalysis.studies.skill_or_format import SkillOrFormat
from mcanalysis.studies.study import carry_out
from mcanalysis.training.continual_trainer import train

TASKS = ("FOMC", "NumGLUE-cm")


@pytest.fixture(scope="module")
def run(run_config, tmp_path_factory):
    config = run_config(tasks=TASKS, num_steps=6, sizes={"train": 16, "eval": 3, "test": 8})
    directory = tmp_path_factory.mktemp("runs") / "run"
    train(config, directory, device="cpu")
    return load_run(directory, "cpu")


@pytest.fixture(scope="module")
def table(run):
    settings = SkillOrFormat(ts=(0.5,), num_examples=6)
    return carry_out(settings, [run], run.directory.parent).tables["skill_or_format"]


def test_losses_are_those_of_pytorch_and_scores_those_of_the_outputs_that_were_kept(run, table, plain_model_at):
    rows = table.set_index(["t", "task"])
    assert len(table) == 3 * 2 and list(table.role) == ["old", "new"] * 3
    point = run.minimum(1, "fast").point
    model = plain_model_at(point)
    for task in TASKS:
        first, rest, num_rest = 0.0, 0.0, 0
        for example in run.task_objective(task, "test", 6).encoded:
            ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
            with torch.no_grad():
                logs = model(ids).logits[0].log_softmax(-1)
            at = len(example.prompt_ids) - 1
            losses = [-float(logs[at + i, token]) for i, token in enumerate(example.answer_ids)]
            first, rest, num_rest = first + losses[0], rest + sum(losses[1:]), num_rest + len(losses) - 1
        row = rows.loc[(0.0, task)]
        assert row.loss_first == pytest.approx(first / 6, rel=1e-4) and row.num_targets == 6 + num_rest
        assert row.loss_rest == pytest.approx(rest / num_rest, rel=1e-4)
        assert row.loss == pytest.approx((first + rest) / row.num_targets, rel=1e-4)
        kept = json.loads((run.directory / "generations/1-FOMC-fast.json").read_text("utf-8"))[task][:6]
        score = get_score(run.task_objective(task, "test", 6).task.score)
        answers = [e.answer for e in run.task_objective(task, "test", 6).examples]
        assert row.parsable == sum(map(score.parses, kept)) / 6
        assert row.score == pytest.approx(sum(map(score.per_example, kept, answers)) / 6)


def test_the_parts_add_up(table):
    start = table[table.t == 0].set_index("task")
    for row in table.to_dict("records"):
        before = start.loc[row["task"]]
        assert row["loss_change_first"] + row["loss_change_rest"] == pytest.approx(row["loss"] - before.loss, abs=1e-9)
        parts = row["score_change_format"] + row["score_change_skill"]
        assert parts == pytest.approx(row["score"] - before.score, abs=1e-6)
    assert (table[table.t == 1.0].loss_change_first != 0).any()


def test_what_is_no_number_stays_none_and_answers_of_one_token_have_no_rest():
    place = {"start": "1-A", "end": "2-B", "num_examples": 4}
    whole = place | {"task": "A", "num_targets": 10, "loss": 1.0, "loss_first": 1.0, "loss_rest": 1.0}
    short = place | {"task": "B", "num_targets": 4, "loss": 1.0, "loss_first": 1.0, "loss_rest": float("nan")}
    read = {"score": 0.5, "parsable": 1.0, "skill": 0.5}
    lost = dict.fromkeys(("loss", "loss_first", "loss_rest", "score", "skill"), float("nan")) | {"parsable": 0.0}
    rows = [whole | read | {"t": 0.0}, short | read | {"t": 0.0}, whole | lost | {"t": 1.0},
            short | read | {"t": 1.0, "loss": 3.0, "loss_first": 3.0}]  # fmt: skip
    found = skill_or_format.changes(pd.DataFrame(rows)).filter(regex="_change_")
    assert (found.iloc[:2] == 0).all(axis=None) and found.iloc[2].isna().all()
    assert found.iloc[3].tolist() == [2.0, 0.0, 0.0, 0.0]


def test_the_second_call_writes_nothing_anew(run, table, monkeypatch):
    monkeypatch.setattr(skill_or_format, "first_token", None)
    again = carry_out(SkillOrFormat(ts=(0.5,), num_examples=6), [run], run.directory.parent)
    assert again.tables["skill_or_format"].equals(table)


def test_a_skill_that_rests_on_few_outputs_has_a_star(table):
    """`table` is of 6 examples; with a hundred, of which all can be read, there is none."""
    few = list(SkillOrFormat().words({"skill_or_format": table}))
    assert few[-1].startswith("* skill is of fewer than 10 outputs") and few[-2][1][-1].endswith("*")
    many = list(SkillOrFormat().words({"skill_or_format": table.assign(num_examples=100, parsable=1.0)}))
    assert not many[-1][1][-1].endswith("*")


@pytest.mark.parametrize(("settings", "words"), [({"ts": (1.5,)}, "got 1.5"), ({"num_examples": 0}, "got 0")])
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        SkillOrFormat(**settings)
    with pytest.raises(UserError, match="two minima"):
        SkillOrFormat().check(1)
