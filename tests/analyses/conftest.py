"""Scripts run in an empty working folder."""

import json

import pytest
import torch

import mcanalysis as mc
from mcanalysis.models.loading import load_base


@pytest.fixture
def script(script, monkeypatch, tmp_path):
    """`script("connectivity", "--num-points", "1")` gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return script


@pytest.fixture
def adapter_folder(tmp_path, base_folder, make_examples):
    """A folder with the adapters `first` and `second` of one base, and `old.json` and `new.json` to measure them on."""
    base, _ = load_base(str(base_folder))
    shapes = {name: m.weight.shape for name, m in base.named_modules() if name.endswith("v_proj")}
    for seed, name in enumerate(("first", "second")):
        generator = torch.Generator().manual_seed(seed)
        point = {f"{n}.lora_A.weight": torch.randn(2, into, generator=generator) for n, (_, into) in shapes.items()}
        point |= {f"{n}.lora_B.weight": torch.randn(out, 2, generator=generator) for n, (out, _) in shapes.items()}
        mc.save_adapter(point, tmp_path / name, str(base_folder))
    examples = [{"prompt": e.prompt, "answer": e.answer} for e in make_examples(4)]
    for name in ("old", "new"):
        (tmp_path / f"{name}.json").write_text(json.dumps(examples if name == "old" else examples[::-1]))
    return tmp_path
