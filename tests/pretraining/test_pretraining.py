"""The corpus, the tokenizer and a tiny base trained from generated text and from a folder."""

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from mcanalysis.errors import DataError, RunDirectoryError, UserError
from mcanalysis.models.base_source import EMBEDDED_DIRECTORY
from mcanalysis.models.loading import load_base
from mcanalysis.pretraining.config import PretrainingConfig
from mcanalysis.pretraining.corpus import folder_documents, generated_documents
from mcanalysis.pretraining.instructions import KINDS, instruction
from mcanalysis.pretraining.pretrain import PackedRows, pretrain
from mcanalysis.tasks.embedded import generate_task, grammars

TINY = {
    "num_steps": 3, "batch_size": 2, "row_length": 24, "vocab_size": 400, "hidden_size": 16, "num_layers": 1,
    "num_heads": 2, "intermediate_size": 32,
}  # fmt: skip


def test_no_prompt_of_the_benchmark_is_in_the_corpus():
    endings = {e.prompt.split("\n")[-1] for n in grammars() for e in generate_task(n, 0, 3, 1, 1).splits["train"]}
    assert len(endings) >= 5
    for document in islice(generated_documents(0), 4000):
        assert document.prompt.split("\n")[-1] not in endings
        assert not any(document.text.endswith(ending) for ending in endings)


def test_instructions_are_seeded_and_of_every_kind():
    assert [instruction(Random(1)) for _ in range(3)] == [instruction(Random(1)) for _ in range(3)]
    for kind, _ in KINDS:
        prompt, answer = kind(Random(0))
        assert prompt and answer and not answer.endswith("\n")


def test_rows_are_full_and_prompts_of_instructions_are_not_predicted(tokenizer):
    rows = list(islice(PackedRows(generated_documents(0), tokenizer, 32), 50))
    assert all(len(r["input_ids"]) == len(r["labels"]) == 32 for r in rows)
    ignored = sum(int((r["labels"] == -100).sum()) for r in rows)
    assert 0 < ignored < 50 * 32
    for r in rows:
        kept = r["labels"] != -100
        assert (r["labels"][kept] == r["input_ids"][kept]).all()


def test_a_folder_gives_texts_and_train_splits_only(tmp_path):
    (tmp_path / "book.txt").write_text("One paragraph.\n\nAnother one.\n", encoding="utf-8")
    task = tmp_path / "FOMC"
    task.mkdir()
    for split in ("train", "eval", "test"):
        (task / f"{split}.json").write_text(json.dumps([{"prompt": f"{split}?", "answer": "A"}]))
    documents = folder_documents(tmp_path)
    assert [d.prompt + d.text for d in documents] == ["One paragraph.", "Another one.", "train?A"]
    (task / "train.json").write_text("{oops")
    with pytest.raises(DataError, match=r"train\.json"):
        folder_documents(tmp_path)
    with pytest.raises(DataError, match="--text-dir"):
        folder_documents(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"\*\.txt"):
        folder_documents(tmp_path / "empty")


def test_the_same_seed_gives_the_same_base_and_it_loads(tmp_path):
    for name in ("a", "b"):
        summary = pretrain(PretrainingConfig(**TINY), tmp_path / name)
    assert summary["num_parameters"] > 0
    files = [{f.name: f.read_bytes() for f in Path(tmp_path, n).iterdir()} for n in ("a", "b")]
    assert files[0] == files[1] and "model.safetensors" in files[0]  # whatever the time it took
    assert "seconds" in summary and "seconds" not in json.loads(files[0]["pretraining.json"])
    model, tokenizer = load_base(str(tmp_path / "a"))
    assert model.num_parameters() == summary["num_parameters"]
    for text in ("plain", "Zürich 圣诞节 🎄", "tab\tand\nline"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    with pytest.raises(RunDirectoryError, match="not empty"):
        pretrain(PretrainingConfig(**TINY), tmp_path / "a")


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="vocab_size of at least 300"):
        PretrainingConfig(vocab_size=100)
    with pytest.raises(UserError, match="multiple"):
        PretrainingConfig(hidden_size=130)


def test_the_shipped_base_is_what_the_docs_say():
    weights = EMBEDDED_DIRECTORY / "model.safetensors"
    assert weights.stat().st_size <= 6_000_000
    model, tokenizer = load_base()
    assert 1_000_000 <= model.num_parameters() <= 1_500_000
    assert type(model).__name__ == "LlamaForCausalLM"
    lengths = []
    for name in grammars():
        for e in generate_task(name, 0, 100, 1, 1).splits["train"]:
            assert tokenizer.decode(tokenizer(e.prompt)["input_ids"]) == e.prompt
            lengths.append(len(tokenizer(e.prompt)["input_ids"]) + len(tokenizer(e.answer)["input_ids"]) + 1)
    assert sum(lengths) / len(lengths) <= 40
    recorded = json.loads((EMBEDDED_DIRECTORY / "pretraining.json").read_text())
    assert recorded["config"] == asdict(PretrainingConfig()), "the script's defaults make the shipped base"
