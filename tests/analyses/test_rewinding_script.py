"""`connectivity.py --from-base` and `--extrapolate` as typed: adapters from elsewhere, figures, report, refusals."""

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from mcanalysis.plotting import plot_transitions
from mcanalysis.plotting.stability_plasticity import drawn_rows
from mcanalysis.report.contents import sentences
from mcanalysis.report.paths_and_planes import measured, transition_curves
from mcanalysis.runs.finished import FinishedRun

SMALL = ("--num-points", 3, "--num-examples", 3)


@pytest.fixture
def adapters(base_folder, tmp_path):
    """Two adapters of other ranks on the tiny base, and data, in the working folder."""
    from mcanalysis.models.adapter_files import LoraSettings
    from mcanalysis.models.loading import load_base
    from mcanalysis.models.lora_model import LoraModel

    for name, rank in {"a": 2, "b": 5}.items():
        base, tokenizer = load_base(str(base_folder))
        model = LoraModel.attach(base, tokenizer, LoraSettings(rank, 4.0), 0, str(base_folder))
        generator = torch.Generator().manual_seed(rank)
        with torch.no_grad():
            for parameter in model.parameters.values():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save(tmp_path / name)
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": f"apple {i}:", "answer": "river"} for i in range(3)]))
    return ("--minima", "a,b", "--data", "data.json", "--model", base_folder, *SMALL, "--output-dir", "out")


def test_adapters_from_elsewhere_are_rewound_each(script, adapters, tmp_path, plain_model_at, alone, encode_examples):
    flags = (*adapters, "--paths", "linear-delta", "--from-base", "--extrapolate", "-0.5,1.5")
    code, out, err = script("connectivity", *flags)
    assert code == 0, err
    table = pd.read_csv(tmp_path / "out/tables/profiles.csv")
    assert set(zip(table.start, table.end, strict=True)) == {("1-a", "2-b"), ("0-BASE", "1-a"), ("0-BASE", "2-b")}
    assert sorted(set(table.t)) == [-0.5, 0, 0.5, 1, 1.5]
    rewound = table[table.start == "0-BASE"]
    assert rewound[rewound.t == 0].loss.nunique() == 1
    for start, t, end in (("1-a", 0.0, "1-a"), ("1-a", 1.0, "2-b")):
        at_end = rewound[(rewound.end == end) & (rewound.t == 1)].loss.item()
        assert table[(table.start == start) & (table.t == t)].loss.item() == at_end
    from mcanalysis.models.encoding import encode_all
    from mcanalysis.models.loading import load_tokenizer
    from mcanalysis.tasks.task import Example

    questions = [Example(f"apple {i}:", "river") for i in range(3)]
    tokenizer = load_tokenizer(str(adapters[5]))
    encoded, model = encode_all(questions, tokenizer, 128)[0], plain_model_at()
    base = sum(float(alone(model, e)[0].detach()) for e in encoded) / sum(len(e.answer_ids) for e in encoded)
    assert rewound[rewound.t == 0].loss.iloc[0] == pytest.approx(base, rel=1e-5)
    caption = (tmp_path / "out/figures/rewinding_fast.txt").read_text()
    assert "from the base model to two adapters. Rewinding" in caption and "t from -0.5 to 1.5" in caption
    assert "rewinding" in out and "barriers, dips, gains and t* are of 0 ≤ t ≤ 1" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--extrapolate", "-0.5,1.5"), "straight paths with --extrapolate, got bezier-factor"),
        (("--extrapolate", "0.5,1.5", "--paths", "linear-delta"), "--extrapolate LOW,HIGH"),
        (("--extrapolate", "-0.5,x", "--paths", "linear-delta"), "--extrapolate"),
        (("--from-bass",), "did you mean --from-base"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(script, adapters, tmp_path, flags, words):
    code, _, err = script("connectivity", *adapters, *flags)
    assert code == 2 and words in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_figures_and_report_keep_rewinding_and_what_lies_beyond_apart(script, run_config, tmp_path, monkeypatch):
    from mcanalysis.training.continual_trainer import train

    config = run_config(tasks=("FOMC", "MedMCQA"), sizes={"train": 8, "test": 3}, num_test=3)
    train(config, tmp_path / "run", device="cpu")
    flags = (
        "--run",
        "run",
        *SMALL,
        "--paths",
        "linear-delta,linear-factor",
        "--from-base",
        "--extrapolate",
        "-0.5,1.5",
    )
    code, _, err = script("connectivity", *flags)
    assert code == 0, err
    captions = [(tmp_path / f"run/figures/{name}_fast.txt").read_text() for name in ("rewinding", "connectivity")]
    assert "Rewinding" in captions[0] and "from the base model to each minimum" in captions[0]
    assert "Rewinding" not in captions[1] and "between successive minima" in captions[1]
    assert all("t from -0.5 to 1.5; barriers, gains and t* are of 0 ≤ t ≤ 1" in caption for caption in captions)
    run = FinishedRun(tmp_path / "run")
    profiles, barriers = run.table("profiles"), run.table("barriers")
    drawn = drawn_rows(profiles)
    assert set(drawn.start) == {"1-FOMC"} and drawn.t.between(0, 1).all()
    of_base = profiles.start == "0-BASE"
    figure = plot_transitions(profiles[of_base], barriers[barriers.start == "0-BASE"])
    shaded = figure.findobj(lambda artist: artist.get_gid() == "beyond the ends")
    assert len(shaded) == 2 * 2 * 2  # both sides of score and loss of two paths
    low, high = figure.axes[0].get_xlim()
    assert low < -0.5 and high > 1.5
    words = " ".join(text.get_text() for text in figure.texts)
    assert "rewinding: " in words and "t from −0.5 to 1.5 (0 = base model, 1 = minimum)" in words
    inside = profiles[of_base & profiles.t.between(0, 1)]
    plain = plot_transitions(inside, barriers[barriers.start == "0-BASE"])
    assert not plain.findobj(lambda artist: artist.get_gid() == "beyond the ends")

    folder = Path(__file__).parents[2] / "figures"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("figure_of_paths", folder / "linear_connectivity.py")
    module = sys.modules["figure_of_paths"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {picture.stem: picture for picture in module.draw([run])}
    assert list(found) == ["linear_connectivity_run", "rewinding_run"]
    assert "Rewinding" in found["rewinding_run"].caption
    assert set(found["rewinding_run"].data[""].end) == {"1-FOMC", "2-MedMCQA"}
    assert set(found["linear_connectivity_run"].data[""].start) == {"1-FOMC"}

    curves = transition_curves(*measured(run))
    assert [(c["start"], c["end"]) for c in curves] == [
        ("1-FOMC", "2-MedMCQA"), ("0-BASE", "1-FOMC"), ("0-BASE", "2-MedMCQA"),
    ]  # fmt: skip
    assert curves[0]["kinds"][0]["t"] == [-0.5, 0, 0.5, 1, 1.5]
    said = " ".join(sentences(run, run.accuracy_matrix, measured(run)[1]))
    assert "of 1 transitions" in said and "Rewinding (from the base to a minimum)" in said and "on 0 of 1 paths" in said


def test_merges_of_adapters_from_elsewhere(script, adapters, tmp_path):
    code, _, err = script("connectivity", *adapters, "--paths", "ties-delta,slerp-delta", "--from-base")
    assert code == 0, err
    table, barriers = (pd.read_csv(tmp_path / f"out/tables/{name}.csv") for name in ("profiles", "barriers"))
    rewound, between = (table[(table.start == "0-BASE") == is_base] for is_base in (True, False))
    ties, slerp = (between[between.path == path].set_index("t").loss for path in ("ties", "slerp"))
    assert ties[0.0] == rewound[rewound.t == 0].loss.iloc[0] and ties[1.0] not in set(rewound.loss)
    for t, end in ((0.0, "1-a"), (1.0, "2-b")):
        assert slerp[t] == rewound[(rewound.t == 1) & (rewound.end == end)].loss.item()
    assert barriers[barriers.path == "ties"].chord_barrier.isna().all()
    code, _, err = script("connectivity", *adapters, "--paths", "ties-factor")
    assert code == 2 and "choose ties-delta" in err
