"""Data of the hub, which no test can reach: what is asked, drawn, kept and recorded, with a hub made here."""

import json
import logging
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.errors import UserError
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.tasks.published import classification, hub
from mcanalysis.training.continual_trainer import train

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A hub with AG News, whose texts name the commit they are of: `here.commit` is its main branch's."""
    import datasets
    import huggingface_hub

    here = SimpleNamespace(commit=FIRST, asked=[], loaded=[])

    def dataset_info(self, repo_id, *, revision=None, timeout=None):
        here.asked.append((repo_id, revision, timeout))
        return SimpleNamespace(sha=here.commit)

    def load_dataset(path, name, *, split, revision):
        here.loaded.append((path, name, split, revision))
        features = Features(text=Value("string"), label=ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"]))
        texts = [f"{split} {i} of {revision[:1]}" for i in range(40)]
        return Dataset.from_dict({"text": texts, "label": [i % 4 for i in range(40)]}, features=features)

    monkeypatch.delenv("MCANALYSIS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return here


def load(**options):
    (data,) = load_benchmark("standard", tasks=["agnews"], **options)
    return data


def test_the_commit_is_asked_for_and_recorded(here):
    data = load()
    assert data.origin == f"fancyzhx/ag_news@{FIRST}"
    assert here.asked == [("fancyzhx/ag_news", None, hub.SECONDS)] and hub.SECONDS == 15
    assert here.loaded == [("fancyzhx/ag_news", None, split, FIRST) for split in ("train", "test")]
    assert len(data.splits["train"]) == 36 and "of 1\n" in data.splits["test"][0].prompt
    assert load(sizes={"train": 3}).origin == data.origin


def test_what_was_drawn_is_kept_so_that_neither_the_hub_nor_its_changes_matter(here, monkeypatch):
    first = load()
    here.commit = SECOND
    here.loaded.clear()
    assert load() == first and not here.loaded and len(here.asked) == 1
    assert load(commits={"agnews": SECOND}).origin.endswith(SECOND)
    assert "of 2\n" in load(commits={"agnews": SECOND}).splits["test"][0].prompt
    assert load(commits={"agnews": FIRST}) == first


def test_a_damaged_draw_is_made_again(here, tmp_path, caplog):
    first = load()
    (kept,) = (tmp_path / "cache" / "mcanalysis" / "hub").iterdir()
    kept.write_text(kept.read_text()[:100])
    with caplog.at_level(logging.WARNING):
        assert load() == first
    assert "is damaged and is made again" in caplog.text


def test_another_recipe_is_drawn_anew(here, monkeypatch):
    assert load().splits["test"][0].prompt.startswith("What is the topic")
    other = replace(classification.TASKS["agnews"], instruction="Topic?\n")
    monkeypatch.setitem(classification.TASKS, "agnews", other)
    assert load().splits["test"][0].prompt.startswith("Topic?") and len(here.loaded) == 4


def test_a_cache_that_cannot_be_written_is_no_fault(here, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert load().origin.endswith(FIRST)
    assert "agnews is not kept in" in caplog.text and "the hub is asked again" in caplog.text


def test_a_hub_that_does_not_answer_is_one_line_in_time(here, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(hub, "SECONDS", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: time.sleep(5))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"'fancyzhx/ag_news' from the hub, got: no answer in 0.2 s; .*--data-dir") as e:
        load()
    assert time.monotonic() - start < 2 and "\n" not in str(e.value)


def test_a_hub_that_is_out_of_reach_is_one_line(script, tmp_path, monkeypatch):
    """As in this suite, which forbids the hub."""
    monkeypatch.delenv("MCANALYSIS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, err = script("train", "--benchmark", "standard", "--dry-run")
    assert code == 2 and err.count("\n") == 1
    assert "Expected the data set 'fancyzhx/dbpedia_14' from the hub, got: " in err and "--data-dir DIR." in err


def test_task_folders_of_a_data_set_of_the_hub(here, tmp_path, monkeypatch):
    import huggingface_hub

    for name in ("FOMC", "Mine"):
        (tmp_path / "snapshot" / name).mkdir(parents=True)
        for split in ("train", "eval", "test"):
            (tmp_path / "snapshot" / name / f"{split}.json").write_text('[{"prompt": "p:", "answer": "A"}]')
    asked = []

    def snapshot_download(dataset, *, revision, repo_type, allow_patterns, local_files_only=False):
        asked.append((dataset, revision, repo_type, local_files_only))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = load_benchmark("trace", "hub:someone/tasks@v2")
    assert [(d.task.name, d.origin) for d in loaded] == [(n, f"someone/tasks@{FIRST}") for n in ("FOMC", "Mine")]
    assert here.asked == [("someone/tasks", "v2", hub.SECONDS)]
    assert asked == [("someone/tasks", FIRST, "dataset", False)]
    load_benchmark("trace", "hub:someone/tasks@v2", commits={"FOMC": SECOND})
    assert asked[1] == ("someone/tasks", SECOND, "dataset", True) and len(here.asked) == 1


def test_the_manifest_has_the_commit_and_a_run_is_opened_at_it(here, run_config, tmp_path):
    config = replace(
        run_config("sequential", num_steps=1), benchmark="standard", tasks=("agnews",), sizes={"train": 4}, num_test=1
    )
    train(config, tmp_path / "run", device="cpu")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["hashes"]["origins"] == {"agnews": f"fancyzhx/ag_news@{FIRST}"}
    here.commit = SECOND
    load(commits={"agnews": SECOND})  # the newest that is kept is another's
    assert FinishedRun(tmp_path / "run").tasks["agnews"].origin.endswith(FIRST)
    assert "origins" not in manifest["config"]
