"""The card on the command line."""

import json

import pytest
import torch

import mcanalysis as mc
from mcanalysis.models.loading import load_base


@pytest.fixture
def folder(tmp_path, base_folder, make_examples):
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


SMALL = ("--num-points", 3, "--workers", 1, "--max-new-tokens", 2)


def test_a_card_of_two_tasks_names_the_base_of_the_adapters_and_both_files_are_written(folder, script):
    code, out, err = script("card", "first", "second", "--data", "old.json,new.json", *SMALL)
    assert code == 0, err
    page = (folder / "runs/card-first-second/card.md").read_text()
    assert "Straight in the weights" in out and all(f"| {task} | 4 | 2 |" in page for task in ("old", "new"))
    row = next(line for line in page.splitlines() if line.startswith("| delta | mean of both"))
    assert row.split(" | ")[-1] == "0.50 |"  # t* of both tasks together
    assert (folder / "runs/card-first-second/card.html").read_text().startswith("<!doctype html>")
    code, out, err = script("card", "first", "second", "--data", "old.json,new.json", *SMALL, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["t_star"] == 0.5 and answer["pushed"] is None and len(answer["verdict"]) >= 4
    code, _, err = script("card", "second", "first", "--data", "old.json", "--output-dir", "runs/card-first-second")
    assert (
        code == 2 and "another configuration" in err and (folder / "runs/card-first-second/card.md").read_text() == page
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("first",), "SECOND"),
        (("first", "second"), "--data FILE"),
        (("first", "second", "--data", "old.json", "--t", 0.5), "with --push"),
        (("first", "second", "--data", "old.json", "--push", "me/mine", "--t", 2), "from 0 to 1"),
        (("first", "second", "--data", "old.json", "--push", "me/mine"), "a token of the hub"),
        (("first", "nowhere", "--data", "old.json"), "'nowhere'"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_is_written(folder, script, monkeypatch, flags, words):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, _, err = script("card", *flags)
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1 and not (folder / "runs").exists(), err
