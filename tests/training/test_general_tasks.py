"""General tasks of a run: text and answers, after every task and along the paths, against the model by hand."""

import json
import logging
import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch

import mcanalysis as mc
from mcanalysis.errors import DataError, UnknownNameError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.base_source import EMBEDDED_DIRECTORY
from mcanalysis.models.encoding import encode, encode_text
from mcanalysis.pretraining.corpus import generated_documents
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.runs.general import General, pretraining_text
from mcanalysis.store.manifest import read_manifest, write_manifest
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.study import carry_out
from mcanalysis.tasks.task import Example
from mcanalysis.training.continual_trainer import train

TEXTS = ("seven green stone river apple", "quiet paper north silver Haus stone")


def text_loss(model, tokenizer, texts=TEXTS):
    """Nats per token after the first of each text, one unpadded text at a time."""
    nll, number = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
        nll -= float(log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum().detach())
        number += ids.shape[1] - 1
    return nll / number


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_config, make_examples):
    """A run of two tasks, I-LoRA, and its general data; one general task is called like a trained one."""
    root = tmp_path_factory.mktemp("general")

    def write(file, examples):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([{"prompt": e.prompt, "answer": e.answer} for e in examples]))

    for k, name in enumerate(("zeta", "alpha")):
        for split in ("train", "eval", "test"):
            write(root / "data" / name / f"{split}.json", make_examples(4, f"{k}/{split}"))
    write(root / "held" / "zeta" / "test.json", make_examples(3, "held"))
    write(root / "held" / "rows" / "test.json", [Example("", text) for text in TEXTS])
    (root / "held" / "text.txt").write_text("\n\n".join(TEXTS) + "\n")
    config = run_config("ilora", benchmark="trace", data_dir=str(root / "data"), tasks=("zeta", "alpha"))
    train(config, root / "run", device="cpu", general=General(str(root / "held")))
    return root, config


def test_text_is_every_token_after_the_first(tokenizer):
    found, lost = encode_text(Example("", TEXTS[0]), tokenizer, 64)
    ids = tuple(tokenizer(TEXTS[0])["input_ids"])
    assert found.prompt_ids + found.answer_ids == ids and lost == 0
    assert len(found.prompt_ids) == 1 and tokenizer.eos_token_id not in found.answer_ids
    found, lost = encode_text(Example("", TEXTS[0]), tokenizer, 3)  # its end is cut off
    assert found.prompt_ids + found.answer_ids == ids[:3] and lost == len(ids) - 3
    for text, limit in (("", 64), (TEXTS[0], 1)):
        with pytest.raises(DataError, match="Expected text with a token to predict"):
            encode_text(Example("", text), tokenizer, limit)


def test_a_start_token_predicts_the_first_token(tokenizer):
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    starting = deepcopy(tokenizer)
    end = tokenizer.eos_token
    starting._tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A", pair=f"{end} $A $B", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    found, _ = encode_text(Example("", TEXTS[0]), starting, 64)
    assert found.prompt_ids == (tokenizer.eos_token_id,)
    assert found.answer_ids == tuple(tokenizer(TEXTS[0])["input_ids"])


def test_text_beside_answers_is_read_and_not_answered(make_model, random_point, plain_model_at, make_tasks, tokenizer):
    (task,) = make_tasks(("zeta",))
    text = pretraining_text().first({"test": 4})
    objectives = [make_objective(data, "test", tokenizer, 128) for data in (text, task)]
    model = make_model()
    point = random_point(model, 3)
    of_text, of_task = Engine(model).evaluate(point, objectives)
    assert not of_text.outputs and np.isnan(of_text.measurement.score) and len(of_task.outputs) == 3
    assert of_task.measurement == Engine(model).evaluate(point, objectives[1:])[0].measurement
    plain, nll, number = plain_model_at(point), 0.0, 0
    for example in text.splits["test"]:
        encoded, _ = (encode if example.prompt else encode_text)(example, tokenizer, 128)
        ids = torch.tensor([encoded.prompt_ids + encoded.answer_ids])
        first = len(encoded.prompt_ids)
        log_p = plain(input_ids=ids).logits[0].double().log_softmax(-1)[first - 1 : -1]
        nll -= float(log_p.gather(1, ids[0, first:, None]).sum().detach())
        number += len(encoded.answer_ids)
    assert {bool(e.prompt) for e in text.splits["test"]} == {True, False}
    assert of_text.measurement.loss == pytest.approx(nll / number, rel=1e-5)


def test_every_stage_and_learner_by_hand(trained, plain_model_at, tokenizer):
    root, _ = trained
    table = FinishedRun(root / "run").table("general")
    assert list(table.columns) == ["after", "learner", "task", "loss", "score", "retention"]
    assert set(zip(table.after, table.learner, strict=True)) == {(k, s) for k in (0, 1, 2) for s in ("fast", "slow")}
    assert list(dict.fromkeys(table.task)) == ["rows", "general/zeta", "text"]
    base = text_loss(plain_model_at(), tokenizer)
    for row in table[table.task.isin(["rows", "text"])].itertuples():
        loss = base
        if row.after:
            label = ("1-zeta", "2-alpha")[row.after - 1]
            point = load_adapter(root / "run" / "minima" / label / row.learner).point
            loss = text_loss(plain_model_at(point), tokenizer)
        assert row.loss == pytest.approx(loss, rel=1e-5) and np.isnan(row.score)
        assert row.retention == pytest.approx(min(1, np.exp(base - loss)), rel=1e-4)
    scored = table[table.task == "general/zeta"].set_index(["learner", "after"]).score
    for (learner, after), score in scored.items():
        kept = table[(table.task == "general/zeta") & (table.learner == learner) & (table.after == after)].retention
        expected = min(1, score / scored[learner, 0]) if scored[learner, 0] else np.nan
        assert kept.tolist() == pytest.approx([expected], nan_ok=True)
    written = json.loads((root / "run" / "generations" / "2-alpha-slow-general.json").read_text())
    assert list(written) == ["general/zeta"] and len(written["general/zeta"]) == 3
    assert list(FinishedRun(root / "run").accuracy_matrix) == ["after", "zeta", "alpha"]


def test_along_the_paths_of_the_run(trained, tmp_path, plain_model_at, tokenizer):
    root, _ = trained
    folder = shutil.copytree(root / "run", tmp_path / "run")
    run = mc.load_run(folder, device="cpu")
    near = Connectivity(num_points=3, num_examples=None, paths=("linear-factor",), ensemble=3)
    before = carry_out(near, [run], tmp_path).tables
    study = replace(near, extrapolate=(-0.5, 1.0))
    tables = carry_out(study, [run], tmp_path).tables
    general = tables["profiles"][tables["profiles"].role == "general"]
    assert set(general.task) == {"rows", "general/zeta", "text"} and set(general.split) == {"test"}
    stages = run.table("general")
    text = general[general.task == "text"].set_index("t")
    slow = stages[(stages.task == "text") & (stages.learner == run.answering_learner)].set_index("after")
    assert text.loss[[0.0, 1.0]].tolist() == pytest.approx(slow.loss[[1, 2]].tolist())
    assert text.retention[[0.0, 1.0]].tolist() == pytest.approx(slow.retention[[1, 2]].tolist())
    beyond = text_loss(plain_model_at(run.path(1, 2, extrapolate=True)(-0.5)), tokenizer)
    assert text.loss[-0.5] == pytest.approx(beyond, rel=1e-5)
    kept = min(1, np.exp(text_loss(plain_model_at(), tokenizer) - beyond))
    assert text.retention[-0.5] == pytest.approx(kept, rel=1e-4)
    inside = tables["profiles"][tables["profiles"].t >= 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(inside, before["profiles"], check_exact=True)
    for name in ("barriers", "front"):
        pd.testing.assert_frame_equal(tables[name], before[name], check_exact=True)
    middle = run.path(1, 2)(0.5)
    assert text.loss[0.5] == pytest.approx(text_loss(plain_model_at(middle), tokenizer), rel=1e-5)
    assert set(tables["barriers"].task[tables["barriers"].role == "general"]) == set(general.task)
    assert "hypervolume_general" in tables["front"] and set(tables["ensemble"].task) == {
        "zeta",
        "alpha",
        "mean_old",
        "mean",
    }
    said = "".join(map(str, study.words(tables)))
    lost = general.groupby("task").retention.apply(lambda kept: kept.isna().all())
    assert "general ability" in said and "measured from t = -0.5" in said and "not finite" not in said
    assert lost["general/zeta"] and not lost["text"] and "has nothing to keep: general/zeta" in said
    asked = run.objective("general/text")(middle)
    assert asked.loss == run.objective("text")(middle).loss == text.loss[0.5]
    assert run.objective("general/zeta")(middle).num_examples == 3 and run.objective("zeta")(middle).num_examples == 4
    with pytest.raises(UnknownNameError, match="Did you mean 'text'"):
        run.objective("texts")(middle)


@pytest.mark.parametrize("how", ["gone", "changed", "not recorded"])
def test_data_that_are_gone_are_told_and_left_out(trained, tmp_path, caplog, how):
    root, _ = trained
    folder, held = tmp_path / "run", tmp_path / "held"
    shutil.copytree(root / "run", folder)
    shutil.copytree(root / "held", held)
    (held / "text.txt").write_text("another text")
    manifest = read_manifest(folder)
    manifest["general"]["folder"] = str({"gone": tmp_path / "nowhere"}.get(how, held))
    if how == "not recorded":  # a run of before
        del manifest["general"]
    write_manifest(folder, manifest)
    run = FinishedRun(folder)
    with caplog.at_level(logging.WARNING):
        found = run.general_tasks
    assert set(found) == ({"rows", "general/zeta"} if how == "changed" else set())
    (said,) = caplog.messages
    assert "left out" in said and ("text;" in said if how == "changed" else "--general-data" in said)


def test_nothing_is_measured_again_and_nothing_is_asked_of_runs_without(trained, tmp_path, monkeypatch):
    root, config = trained
    folder = shutil.copytree(root / "run", tmp_path / "run")
    before = (folder / "tables" / "general.csv").read_text()
    (folder / "tables" / "general.csv").unlink()

    def evaluate(*_):
        raise AssertionError("a stored value was measured again")

    monkeypatch.setattr(Engine, "evaluate", evaluate)
    train(config, folder, device="cpu", general=General(str(root / "held")))
    assert (folder / "tables" / "general.csv").read_text() == before
    manifest = read_manifest(folder)
    del manifest["general"], manifest["hashes"]["general"]
    write_manifest(folder, manifest)
    run = mc.load_run(folder, device="cpu")
    assert run.general_tasks == {} and "general" not in run.config


def test_outputs_of_tasks_that_are_not_measured_again_are_kept(trained, tmp_path):
    """Another limit for one task measures that one anew: what was written for the others is not lost."""
    root, config = trained
    folder, held = shutil.copytree(root / "run", tmp_path / "run"), shutil.copytree(root / "held", tmp_path / "held")
    (held / "more").mkdir()
    shutil.copy(held / "zeta" / "test.json", held / "more" / "test.json")
    file = folder / "generations" / "2-alpha-fast-general.json"
    before = json.loads(file.read_text())
    for limits, number in (({}, 2), ({"more": 1}, 2)):
        train(config, folder, device="cpu", general=General(str(held), max_new_tokens=limits))
        after = json.loads(file.read_text())
        assert after["general/zeta"] == before["general/zeta"] and len(after) == number
    assert after["more"] != before["general/zeta"]


@pytest.mark.slow
def test_the_embedded_base_has_read_none_of_the_text():
    (data,) = General("pretraining").load()
    held_out = {(e.prompt, e.answer) for e in data.splits["test"]}
    assert len(held_out) == 50 and sum(not prompt for prompt, _ in held_out) == 25
    base = json.loads((EMBEDDED_DIRECTORY / "pretraining.json").read_text())["config"]
    tokens = base["num_steps"] * base["batch_size"] * base["row_length"]
    read = islice(generated_documents(base["seed"]), tokens // 20)  # a document has 22 tokens in the mean
    assert not any((d.prompt, d.text) in held_out for d in read)


@pytest.mark.parametrize("content", ["", "\n\n \n\n", b"\xff\xfe\x00"])
def test_text_files_without_text(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"Expected (UTF-8 )?text in"):
        General(str(tmp_path)).load()
