"""Files and folders of strangers that share a name, or whose name is no name to a table: each keeps its own numbers."""

import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import mcanalysis as mc
from mcanalysis.benchmarks import load_benchmark
from mcanalysis.errors import DataError, UserError
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.tasks.names import RESERVED, told_apart
from mcanalysis.tasks.task import Example, Task, TaskData
from mcanalysis.tasks.trace_files import load_examples, load_files, load_trace_task
from mcanalysis.training.continual_trainer import train

REPOSITORY = Path(__file__).parents[2]


def records(examples):
    return [{"prompt": e.prompt, "answer": e.answer} for e in examples]


def write(file, examples):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in records(examples)) + "\n")
    else:
        file.write_text(json.dumps(records(examples)))
    return str(file)


def loss_of_peft(base_folder, adapter, tokenizer, examples):
    """Nats per target token, one unpadded example at a time."""
    network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), adapter).eval()
    nll, targets = 0.0, 0
    for e in examples:
        prompt, answer = tokenizer(e.prompt)["input_ids"], [*tokenizer(e.answer)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = network(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        nll -= sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))
        targets += len(answer)
    return nll / targets


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("old/data.json", "new/data.json"), ("old-data", "new-data")),
        (("p/qa.json", "q/qa.jsonl"), ("p-qa", "q-qa")),
    ],
)
def test_two_data_files_of_one_name_keep_their_own_numbers(
    files, names, make_model, random_point, make_examples, base_folder, tokenizer, tmp_path, caplog, monkeypatch
):
    from mcanalysis.studies import adapters
    from mcanalysis.studies.adapters import AdapterConnectivity

    model = make_model()
    folders = [str(tmp_path / "first"), str(tmp_path / "second")]
    for seed, folder in enumerate(folders):
        mc.save_adapter(random_point(model, seed), folder, str(base_folder))
    sets = make_examples(3, "old"), make_examples(4, "new")
    data = [write(tmp_path / f, examples) for f, examples in zip(files, sets, strict=True)]
    settings = AdapterConnectivity(num_points=2, paths=("linear-delta",))
    monkeypatch.setattr(AdapterConnectivity, "pictures", lambda *_: ())  # numbers alone
    opening = adapters.AdaptersOpening(tuple(folders), str(base_folder), tuple(data), tmp_path / "out", device="cpu")
    with caplog.at_level(logging.WARNING):
        result = adapters.connect_adapters(opening, settings)
    assert f"in all results {data[0]} is '{names[0]}', {data[1]} is '{names[1]}'" in caplog.text
    written = result.tables["profiles"].set_index(["task", "t"]).loss
    losses = {
        (name, t): loss_of_peft(base_folder, folder, tokenizer, examples)
        for name, examples in zip(names, sets, strict=True)
        for t, folder in zip((0.0, 1.0), folders, strict=True)
    }
    for place, loss in losses.items():
        np.testing.assert_allclose(written[place], loss, rtol=1e-5)
    for t in (0.0, 1.0):  # one old task: its mean is it, and S̄ the middle of both
        np.testing.assert_allclose(written["mean_old", t], losses[names[0], t], rtol=1e-5)
        np.testing.assert_allclose(written["mean", t], (losses[names[0], t] + losses[names[1], t]) / 2, rtol=1e-5)
    assert len(written) == 8


def test_files_are_told_apart_by_what_differs_in_their_paths(tmp_path):
    apart = [told_apart([n, n], files) for n, files in (
        ("data", (tmp_path / "old/run/data.json", tmp_path / "new/run/data.json")),
        ("qa", (tmp_path / "qa.json", tmp_path / "qa.jsonl")),
        ("d", (tmp_path / "d/train.json", tmp_path / "d/test.json")),
        ("x", ("/x.json", tmp_path / "x.json")),
    )]  # fmt: skip
    assert apart == [["old-data", "new-data"], ["qa.json", "qa.jsonl"], ["d-train", "d-test"], ["root-x", apart[3][1]]]
    write(tmp_path / "qa.json", [Example("1 + 1 =", "2")])
    (tmp_path / "link.json").symlink_to(tmp_path / "qa.json")
    with pytest.raises(UserError, match=r"different data files, got .*qa.json twice; name it once"):
        load_files([tmp_path / "qa.json", tmp_path / "qa.json"])
    # A known task keeps its score and its limit under its new name.
    both = load_files([write(tmp_path / f / "FOMC.json", [Example("Text:", "A")]) for f in "ab"])
    assert [(d.task.name, d.task.score, d.task.max_new_tokens) for d in both] == [
        ("a-FOMC", "accuracy", 4),
        ("b-FOMC", "accuracy", 4),
    ]


@pytest.mark.parametrize("name", [*RESERVED, "a/b", "a\\b", "two\nlines", "a\x00b", "\ud800"])
def test_a_name_that_is_no_name_of_a_task_is_refused_everywhere(name, tmp_path):
    with pytest.raises(DataError, match=r"Expected a name for a task.*; rename it"):
        Task(name, "en", "exact_match", 4)
    if name in RESERVED:
        examples = [Example("1 + 1 =", "2")]
        for split in ("train", "eval", "test"):
            file = write(tmp_path / name / f"{split}.json", examples)
        for load in (
            lambda: load_examples(file),
            lambda: load_examples(write(tmp_path / f"{name}.json", examples)),
            lambda: load_trace_task(tmp_path, name),
            lambda: load_benchmark("trace", tmp_path),
        ):
            with pytest.raises(DataError, match=f"got '{name}', which names a (mean|column) in the tables"):
                load()


def test_tasks_of_one_name_are_refused_wherever_tasks_are_given(run_config, make_tasks, tmp_path):
    from mcanalysis.runs.general import General
    from mcanalysis.training.dry_run import dry_run

    twins, others = make_tasks(("zeta", "zeta")), make_tasks(("alpha",))
    for call in (
        lambda: train(run_config(), tmp_path / "run", tasks=twins, device="cpu"),
        lambda: train(run_config(), tmp_path / "run", tasks=others, general=twins, device="cpu"),
        lambda: dry_run(run_config(), tasks=twins),
    ):
        with pytest.raises(UserError, match="Expected each task once, got zeta 2 times"):
            call()
    assert not (tmp_path / "run").exists()
    write(tmp_path / "general/zeta/test.json", [Example("1 + 1 =", "2")])
    with pytest.raises(UserError, match="got zeta 2 times"):
        General(str(tmp_path / "general"), ("zeta", "zeta")).load()


def test_names_that_look_like_gaps_and_numbers_stay_names(run_config, make_examples, tmp_path, monkeypatch):
    names = ("NA", "nan", "1", "Qa", "qa", "a,b", "x")
    for k, name in enumerate(names):
        for split in ("train", "eval", "test"):
            write(tmp_path / "data" / name / f"{split}.json", make_examples(2, f"{k}/{split}"))
    config = run_config(num_steps=1, benchmark="trace", data_dir=str(tmp_path / "data"), tasks=names)
    config = replace(config, max_new_tokens=dict.fromkeys(names, 3))
    general = [TaskData.of(Task("NA", "en", "exact_match", 4), {"test": make_examples(2, "general")})]
    train(config, tmp_path / "run", device="cpu", general=general)
    run = mc.load_run(tmp_path / "run", device="cpu")
    assert [m.task for m in run.minima] == list(run.tasks) == list(names)
    assert list(run.accuracy_matrix.columns) == ["after", *names]

    written = json.loads((tmp_path / "run/generations/0-base.json").read_text())
    assert list(written) == list(names) and all(len(outputs) == 2 for outputs in written.values())
    shared = json.loads((tmp_path / "run/manifest.json").read_text())["evaluation"]["shared_prefix_tokens"]
    assert set(shared) == {*names, "general/NA"}

    rows = [
        {"learner": "fast", "space": "factor", "path": "linear", "start": "1-NA", "end": "2-nan", "t": t, "task": task,
         "split": "test", "loss": 0.5, "score": 0.5, "num_examples": 3}
        for task in names for t in (0.0, 1.0)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "run/tables/profiles.csv", index=False)
    from mcanalysis.explore.walk import profiles

    monkeypatch.syspath_prepend(REPOSITORY / "figures")
    finished = FinishedRun(tmp_path / "run")
    for table in (profiles(run), finished.table("profiles")):
        assert list(dict.fromkeys(table.task)) == list(names)
    assert set(finished.table("general").task) == {"general/NA"}
    import accuracy_over_time

    assert list(dict.fromkeys(accuracy_over_time._long(finished).task)) == list(names)
    del sys.modules["accuracy_over_time"]


def test_two_objectives_of_one_name_are_read_each_for_itself(make_model, random_point, make_examples, tokenizer, alone,
                                                             plain_model_at):  # fmt: skip
    from mcanalysis.evaluation.engine import Engine
    from mcanalysis.evaluation.objective import make_objective

    task = Task("same", "en", "exact_match", 4)
    sets = [[Example(f"{start} {e.prompt}", e.answer) for e in make_examples(4, start)] for start in ("apple", "river")]
    objectives = [
        make_objective(TaskData.of(task, {split: examples}), split, tokenizer, 128)
        for split, examples in zip(("eval", "test"), sets, strict=True)
    ]
    model = make_model()
    point = random_point(model, 3)
    plain = plain_model_at(point)
    for objective, found in zip(objectives, Engine(model).losses(point, objectives), strict=True):
        expected = [float(alone(plain, e)[0].detach()) for e in objective.encoded]
        np.testing.assert_allclose(found.nll, expected, rtol=2e-5, atol=1e-5)


def test_json_lines_are_read_a_record_a_line(tmp_path):
    examples = [Example("a\u2028b:", "ü"), Example("c:", "d\ne")]
    file = tmp_path / "mine.jsonl"
    write(file, examples)
    assert load_examples(file).splits["test"] == tuple(examples)
    for split in ("train", "eval", "test"):
        write(tmp_path / "root/Mine" / f"{split}.jsonl", examples)
    assert load_trace_task(tmp_path / "root", "Mine").splits["eval"] == tuple(examples)
    write(tmp_path / "root/Mine/eval.json", examples)
    with pytest.raises(DataError, match=r"one file of eval examples .*, got eval.json and eval.jsonl; remove one"):
        load_trace_task(tmp_path / "root", "Mine")
    shutil.copy(file, tmp_path / "lines.json")
    with pytest.raises(DataError, match=r"Extra data at line 3.*if it holds one record per line, name it .jsonl"):
        load_examples(tmp_path / "lines.json")
    for text, message in (
        (
            '{"prompt": "a", "answer": "b"}\n{"prompt": "a"\n',
            r"got: .* at line 2, .*; write one record per line",
        ),
        ('[{"prompt": "a", "answer": "b"}]\n', r'"answer": "..."} on each line in .*, got a list at line 1'),
        ('{"prompt": "a", "answer": "b"}\n\n{"prompt": "a"}\n', r'Expected the key "answer" in .* at line 3'),
        ("\n", "Expected at least one example"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            load_examples(file)
