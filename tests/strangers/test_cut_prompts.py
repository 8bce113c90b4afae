"""Prompts that are too long lose their middle: how many is said on the terminal, in the caption and in the manifest."""

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import save_adapter
from mcanalysis.plotting.connectivity_caption import caption
from mcanalysis.runs.run import load_run
from mcanalysis.tasks.task import Example, Task, TaskData
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.continual_trainer import train

ANALYSES = Path(__file__).parents[2] / "analyses"


@pytest.fixture
def connectivity(monkeypatch, capsys, tmp_path):
    """connectivity(*flags) -> the document that `connectivity.py --json` prints."""
    monkeypatch.setattr("mcanalysis.studies.executors.processes.default_workers", lambda *_: 1)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["connectivity.py", *map(str, flags), "--json"])
        monkeypatch.syspath_prepend(str(ANALYSES))
        spec = importlib.util.spec_from_file_location("script_connectivity", ANALYSES / "connectivity.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capsys.readouterr()
        module.run_script(module.main)
        return json.loads(capsys.readouterr().out)

    monkeypatch.chdir(tmp_path)
    return run


def told(caplog):
    return [r.getMessage() for r in caplog.records if "were cut" in r.getMessage()]


def lengths_of(examples, tokenizer):
    """Tokens of prompt, answer and end."""
    return [sum(len(tokenizer(text)["input_ids"]) for text in (e.prompt, e.answer)) + 1 for e in examples]


def test_two_adapters_on_data_that_is_cut(
    connectivity, make_model, random_point, base_folder, tokenizer, caplog, tmp_path
):
    model = make_model()
    for seed in (1, 2):
        save_adapter(random_point(model, seed), tmp_path / f"a{seed}", str(base_folder))
    files = {"old": (3, 9, 30), "new": (2, 40, 50, 60)}
    needed = {}
    for name, sizes in files.items():
        examples = [Example("river " * n + f"{name}:", "green") for n in sizes]
        (tmp_path / f"{name}.json").write_text(json.dumps([{"prompt": e.prompt, "answer": e.answer} for e in examples]))
        needed[name] = lengths_of(examples, tokenizer)
    flags = ["--minima", "a1,a2", "--data", "old.json,new.json", "--model", base_folder, "--num-points", 2]
    flags += ["--paths", "linear-factor", "--max-length", 20, "--output-dir", "out"]
    document = connectivity(*flags)
    cut = {name: sum(n > 20 for n in of_file) for name, of_file in needed.items()}
    assert cut == {"old": 1, "new": 3}
    assert told(caplog) == [
        f"{cut[name]} of {len(files[name])} test prompts of {name} were cut: they lost their middle to fit into "
        f"--max-length 20 with their answers; --max-length {max(needed[name])} keeps them whole"
        for name in files
    ]
    stated = {f"{name}/test": number for name, number in cut.items()}
    assert json.loads((tmp_path / "out/manifest.json").read_text())["evaluation"]["cut_prompts"] == stated
    assert document["cut_prompts"] == stated
    profiles, barriers = (pd.read_csv(tmp_path / "out/tables" / f"{name}.csv") for name in ("profiles", "barriers"))
    assert profiles.groupby("task").num_cut.unique().map(list).to_dict() == {
        "old": [1], "new": [3], "mean_old": [1], "mean": [4],
    }  # fmt: skip
    sentence = "cut in their middle: 1 of 3 prompts of old, 3 of 4 prompts of new."
    assert sentence in caption(profiles, barriers)
    assert any(sentence in file.read_text() for file in (tmp_path / "out/figures").glob("*.txt"))
    assert "cut in" not in caption(profiles.drop(columns="num_cut"), barriers)  # a table of version 0.1
    whole = connectivity(*flags[:-4], "--max-length", max(map(max, needed.values())), "--output-dir", "whole")
    assert len(told(caplog)) == 2 and whole["cut_prompts"] == {}
    assert "cut_prompts" not in json.loads((tmp_path / "whole/manifest.json").read_text())["evaluation"]


def test_a_run_says_every_split_that_is_cut_once(run_config, tokenizer, caplog, tmp_path):
    sizes = {"train": (2, 2, 40), "eval": (2, 50), "test": (3, 60)}
    splits = {s: [Example("river " * n + "of a run:", "green") for n in of_split] for s, of_split in sizes.items()}
    tasks = [TaskData.of(Task(name, "en", "exact_match", 3), splits) for name in ("zeta", "alpha")]
    general = [TaskData.of(Task("wiki", "en", "exact_match", 3), {"test": splits["test"]})]
    config = run_config("sequential", num_steps=1)
    config = type(config)(**{**vars(config), "training": TrainingConfig(num_steps=1, batch_size=2, max_length=30)})
    train(config, tmp_path / "run", device="cpu", tasks=tasks, general=general)
    said = told(caplog)
    assert [line.partition(" were")[0] for line in said] == [
        "1 of 3 train prompts of zeta",
        "1 of 3 train prompts of alpha",
        "1 of 2 test prompts of zeta",
        "1 of 2 test prompts of alpha",
        "1 of 2 test prompts of wiki",
    ]
    stated = json.loads((tmp_path / "run/manifest.json").read_text())["evaluation"]["cut_prompts"]
    assert stated == {f"{t}/{s}": 1 for t in ("zeta", "alpha") for s in ("train", "test")} | {"wiki/test": 1}
    run = load_run(tmp_path / "run", device="cpu")
    run.__dict__["tasks"] = {t.task.name: t for t in tasks}
    for _ in range(2):
        run.task_objective("zeta", "eval")
        run.loss([["zeta"], ["alpha"]])
        make_objective(tasks[0], "eval", tokenizer, 30, 2)
    assert [line.partition(" were")[0] for line in told(caplog)[5:]] == ["1 of 2 eval prompts of zeta"]


def test_what_is_not_cut_says_nothing(tokenizer, caplog):
    data = TaskData.of(Task("zeta", "en", "exact_match", 3), {"test": [Example("river " * 40 + "kept:", "green")]})
    needed = lengths_of(data.splits["test"], tokenizer)[0]
    assert make_objective(data, "test", tokenizer, needed).num_cut == 0 and not told(caplog)
    assert make_objective(data, "test", tokenizer, needed - 1).num_cut == 1 and len(told(caplog)) == 1
