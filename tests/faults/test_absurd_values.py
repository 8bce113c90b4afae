"""Absurd values of flags, files and names: one line that names the limit, exit code 2, at once, and nothing written.

What an expected piece says comes from the limits as the documentation has them, not from the code.
"""

import json
import re
import time

import pytest

TINY = ("--strategy", "er", "--tasks", "FOMC", "--steps", 1, "--num-train", 4, "--num-test", 2, "--batch-size", 2)
DIGITS = "9" * 5000  # more than Python makes a number of

FLAGS = [
    (("train", "--steps", 10**12), "num_steps of at most 10,000,000"),
    (("train", "--epochs", 10**12), "epochs of at most 10,000,000"),
    (("train", "--steps", 10**6, "--batch-size", 1000), "at most 20,000,000 examples of FOMC"),
    (("train", "--num-train", 99999999999), "of at most 10,000,000, got 99999999999 for train; lower --num-train"),
    (("train", "--batch-size", 10**12), "batch_size of at most 65,536"),
    (("train", "--gradient-accumulation", 10**8), "gradient_accumulation of at most 65,536"),
    (("train", "--lora-rank", 10**11), "lora_rank of at most 16,384"),
    (("train", "--lora-alpha", "1e400"), "lora_alpha of at most 1e+06, got inf"),
    (("train", "--learning-rate", "inf"), "learning_rate of at most 100, got inf"),
    (("train", "--learning-rate", "nan"), "learning_rate"),
    (("train", "--warmup-ratio", "nan"), "warmup_ratio in [0, 1], got nan"),
    (("train", "--max-new-tokens", "FOMC=99999999999"), "max_new_tokens of at most 1,000,000"),
    (("train", "--seed", 2**64), "seed of at most 18,446,744,073,709,551,615"),
    (("train", "--seed", -(2**63) - 1), "seed of at least -9,223,372,036,854,775,808"),
    (("train", "--seed", DIGITS), "--seed"),
    (("train", "--steps", DIGITS), "--steps"),
    (("train", "--settings", "memory_size=nan"), "memory_size of er, got nan"),
    (("train", "--settings", "memory_size=1e400"), "memory_size of er, got inf"),
    (("train", "--settings", f"memory_size={DIGITS}"), "(5,0"),
    (("train", "--settings", "memory_size=2024-13-45"), "memory_size of er, got '2024-13-45'"),
    (("train", "--settings", "memory_size=[1"), "memory_size of er, got '[1'"),
    (("train", "--settings", "memory_size=*a"), "memory_size of er"),
    (("train", "--settings", "seed=3"), "got seed"),
    (("train", "--settings", "name=3"), "got name"),
    (("train", "--model", "x" * 300), "File name too long"),
    (("train", "--output-dir", "x" * 300), "File name too long"),
    (("train", "--general-data", "x" * 300), "File name too long"),
    (("connectivity", "--num-points", 10**8), "num_points of at most 100,000"),
    (("connectivity", "--extrapolate=-1e9,1e9"), "at most 100,000 points on a path"),
    (("connectivity", "--num-bends", 10**9, "--paths", "bezier-factor"), "num_bends of at most 1,000"),
    (("connectivity", "--curve-steps", 10**12), "curve_steps of at most 10,000,000"),
    (("connectivity", "--ensemble", 10**9), "ensemble of at most 1,000"),
    (("connectivity", "--gauges", 10**9), "gauges of at most 10,000"),
    (("connectivity", "--workers", 10**9), "from 1 to 1,024"),
    (("connectivity", "--time-limit", "nan"), "got nan"),
    (("landscape", "--grid", 10**9), "grid of at most 1,000"),
    (("landscape", "--margin", "1e300"), "margin in [0, 1000]"),
    (("landscape", "--epsilon", "nan"), "epsilon in [0, 1000], got nan"),
    (("curvature", "--num-lanczos", 10**9), "num_lanczos of at most 10,000"),
    (("finders", "--fit-seeds", 10**9), "fit_seeds of at most 1,000"),
    (("basin", "--num-directions", 10**9), "num_directions of at most 10,000"),
    (("basin", "--radii", "1,inf"), "radii in [0, 1000], got inf"),
    (("basin", "--threshold", "inf"), "threshold in [0, 1000], got inf"),
    (("basin", "--forked", 0), "forked of at least 1, got 0"),
    (("predictors", "--num-points", 10**9), "num_points of at most 100,000"),
    (("predictors", "--num-examples", 10**12), "num_examples of at most 10,000,000"),
    (("finders", "--gradients", 10**9), "gradients of at most 10,000,000"),
]
OF_THEIR_OWN = [
    (("pretrain", "--steps", 10**14), "num_steps of at most 10,000,000"),
    (("pretrain", "--num-layers", 10**6), "num_layers of at most 1,000"),
    (("pretrain", "--hidden-size", 10**11), "hidden_size of at most 65,536"),
    (("coverage", "--trials", 10**11), "from 1 to 1,000,000"),
    (("coverage", "--certificates", -1), "from 1 to 1,000,000"),
    (("classics", "--seeds", 10**11), "from 1 to 1,000"),
    (("compare", "--num-orders", 10**11), "num_orders of at most 10,000"),
    (("compare", "--seed", 2**70), "seed of at most"),
    (("tune", "--num-trials", 10**11), "num_trials of at most 10,000"),
    (("ablations", "--seed", 2**70), "seed of at most"),
]
YAML = {
    "utf16": "steps: 3\n".encode("utf-16"),
    "no yaml": b"steps: [3\n",
    "tag": b"steps: !!python/object/apply:os.abort []\n",
    "deep": b"steps: " + b"[" * 3000 + b"]" * 3000,
    "nul": b"steps: 3\0\n",
    "date": b"steps: 2024-13-45\n",
    "digits": b"steps: " + DIGITS.encode(),
    "merge": b"<<: 3\nsteps: 1\n",
    "key": b"? [1, 2]\n: 3\n",
    "infinite": b"steps: .inf\n",
    "binary": b"steps: !!binary aGVsbG8=\n",
    "recursive": b"settings: &a {memory_size: *a}\n",
    "seed in settings": b"settings: {seed: 3}\n",
    "huge": b"batch-size: 1000000000000\n",
}


@pytest.fixture
def refused(script, tmp_path, monkeypatch):
    """refused(name, *flags) -> the one line that was said; in 20 s, and nothing is written."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        before, started = sorted(tmp_path.rglob("*")), time.monotonic()
        code, out, err = script(*arguments)
        assert code == 2 and not out, (code, out, err)
        line = err.strip()
        assert line.startswith("error: ") and "\n" not in line and len(line) < 1200, line
        assert time.monotonic() - started < 20
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return call


def with_the_rest(name, *flags):
    """The flags, and of the small ones those that they leave."""
    given = {str(flag).partition("=")[0] for flag in flags}
    pairs = zip(TINY[::2], TINY[1::2], strict=True)
    return (name, *flags, *(part for pair in pairs if pair[0] not in given for part in pair))


@pytest.mark.parametrize(("arguments", "said"), FLAGS, ids=lambda value: str(value)[:40])
def test_a_flag_beyond_its_limit(refused, arguments, said):
    arguments = with_the_rest(*arguments)
    if "--epochs" in arguments:
        at = arguments.index("--steps")
        arguments = arguments[:at] + arguments[at + 2 :]
    assert said in refused(*arguments)


@pytest.mark.parametrize(("arguments", "said"), OF_THEIR_OWN, ids=lambda value: str(value)[:40])
def test_a_flag_of_another_script(refused, arguments, said):
    assert said in refused(*arguments)


@pytest.mark.parametrize("kind", YAML)
def test_a_settings_file(refused, tmp_path, kind):
    (tmp_path / "run.yaml").write_bytes(YAML[kind])
    refused("train", "--config", "run.yaml", "--strategy", "er")


def data_folder(root, *names):
    rows = json.dumps([{"prompt": f"Text {i}\nLabel:", "answer": "AB"[i % 2]} for i in range(4)])
    for name in names:
        (root / "data" / name).mkdir(parents=True)
        for split in ("train", "eval", "test"):
            (root / "data" / name / f"{split}.json").write_text(rows)
    return root / "data"


@pytest.mark.parametrize(
    ("name", "said"), [("after", "names a column"), ("x" * 240, "at most 90 bytes"), ("字" * 31, "90")]
)
def test_a_task_name_that_cannot_be(refused, tmp_path, name, said):
    data = data_folder(tmp_path, name, "B")
    flags = ("--benchmark", "trace", "--data-dir", data, "--steps", 1, "--strategy", "sequential")
    assert said in refused("train", *flags)


@pytest.mark.slow  # trains, measures and draws
@pytest.mark.parametrize("names", [("$x^$_{", "B$"), ("%s{0}", "a,b"), ("=c", "a=b"), ("x" * 90, "y" * 90)])
def test_a_task_name_that_is_odd_alone(script, tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    data = data_folder(tmp_path, *names)
    flags = ("--benchmark", "trace", "--data-dir", data, "--steps", 1, "--batch-size", 2, "--num-points", 3)
    code, _, err = script("connectivity", *flags, "--strategy", "sequential", "--curve-steps", 2, "--num-examples", 2)
    assert code == 0, err
    assert list((tmp_path / "runs").rglob("profiles.csv"))


def test_a_text_that_no_model_reads(refused, tmp_path):
    """On one line of 20 MB; of 200 MB it takes 2 s."""
    data = data_folder(tmp_path, "B")
    (data / "B" / "train.json").write_text(json.dumps([{"prompt": "x" * 20_000_000, "answer": "A"}]))
    said = refused("train", "--benchmark", "trace", "--data-dir", data, "--steps", 1, "--strategy", "sequential")
    assert "at most 5,000,000 characters in the train split of B, got 20,000,000 in example 0" in said


@pytest.mark.parametrize("text", ['[{"prompt": "a", "answer": "b", "n": ' + DIGITS + "}]", "[" * 100_000])
def test_json_that_python_refuses(refused, tmp_path, text):
    data = data_folder(tmp_path, "B")
    (data / "B" / "eval.json").write_text(text)
    assert "eval.json" in refused(
        "train", "--benchmark", "trace", "--data-dir", data, "--steps", 1, "--strategy", "sequential"
    )


OF_A_BASE = [  # as the fuzzer found those of tokenizers; "" is without the entry
    ("config.json", "num_hidden_layers", 10**6, "layers"),
    ("config.json", "vocab_size", 10**12, "memory"),
    ("generation_config.json", "eos_token_id", 2**70, "numbers of tokens as eos_token_id"),
    ("generation_config.json", "eos_token_id", -1, "eos_token_id in generation_config.json at './base', got -1"),
    ("generation_config.json", "eos_token_id", [1, 0.5], "got 0.5; restore the file"),
    ("generation_config.json", "eos_token_id", [[1], {}], "got [1]; restore the file"),
    ("tokenizer_config.json", "model_max_length", "0", "tokens as model_max_length in tokenizer_config.json"),
    ("tokenizer_config.json", "model_max_length", [2, "a\nb"], "got [2, 'a\\nb']; restore the file"),
    ("tokenizer.json", "model", {"continuing_subword_prefix": "cpu"}, "got: PanicException range end index"),
    ("tokenizer_config.json", "eos_token", "", "Expected a tokenizer with an end token at './base', got none"),
]


@pytest.mark.parametrize(("name", "key", "value", "said"), OF_A_BASE, ids=lambda value: str(value)[:20])
def test_a_file_of_a_base_with_a_value_of_no_use(refused, tmp_path, base_folder, name, key, value, said):
    (tmp_path / "base").mkdir()
    for file in base_folder.iterdir():
        (tmp_path / "base" / file.name).symlink_to(file)
    changed = json.loads((base_folder / name).read_text())
    changed |= {key: changed[key] | value if isinstance(value, dict) else value}
    if value == "":
        del changed[key]
    (tmp_path / "base" / name).unlink()
    (tmp_path / "base" / name).write_text(json.dumps(changed))
    assert said in refused("train", *TINY, "--model", "./base", "--dry-run")


def test_every_number_that_is_a_flag_has_bounds_or_is_checked_elsewhere():
    """A new setting is to say what makes sense, too: this list of those that need none gets no longer by itself."""
    from typing import Annotated, get_args, get_origin, get_type_hints

    from mcanalysis.evaluation.engine_settings import EngineSettings
    from mcanalysis.pretraining.config import PretrainingConfig
    from mcanalysis.settings import Bounds
    from mcanalysis.studies.ablations import Ablations
    from mcanalysis.studies.attribution import Attribution
    from mcanalysis.studies.basin import Basin
    from mcanalysis.studies.card_settings import CardPaths
    from mcanalysis.studies.comparison import Comparison
    from mcanalysis.studies.connectivity.study import Connectivity
    from mcanalysis.studies.curvature import Curvature
    from mcanalysis.studies.early import Early
    from mcanalysis.studies.finders import Finders
    from mcanalysis.studies.landscape.study import Landscape
    from mcanalysis.studies.predictors import Predictors
    from mcanalysis.studies.similarity import Similarity
    from mcanalysis.studies.skill_or_format import SkillOrFormat
    from mcanalysis.studies.trajectory import Trajectory
    from mcanalysis.studies.tuning import Tuning
    from mcanalysis.training.config import Execution, RunConfig, TrainingConfig

    classes = (EngineSettings, PretrainingConfig, Ablations, Attribution, Comparison, Connectivity, Curvature, Early)
    classes += (Finders, Landscape, SkillOrFormat, Trajectory, Tuning, Execution, RunConfig, TrainingConfig)
    classes += (Basin, CardPaths, Predictors, Similarity)
    without = set()
    for of in classes:
        for name, hint in get_type_hints(of, include_extras=True).items():
            kind, *said = get_args(hint) if get_origin(hint) is Annotated else ("",)
            if re.search("int|float", str(kind)) and not any(isinstance(one, Bounds) for one in said):
                without.add(f"{of.__name__}.{name}")
    elsewhere = {  # against the run at hand, or by the function that takes it
        "Attribution.transition", "Early.transition", "Landscape.transition", "Finders.transitions",
        "Connectivity.simplex", "Connectivity.extrapolate", "Connectivity.tolerance", "SkillOrFormat.ts",
        "Curvature.tolerance", "Curvature.spectrum_minimum", "Early.tolerance", "Early.confidence",
        "Landscape.slice_radius", "Landscape.sharpness_radius", "Finders.threshold", "Finders.ensemble",
        "RunConfig.lora_dropout", "CardPaths.simplex", "CardPaths.extrapolate", "CardPaths.tolerance",
        "Similarity.num_examples",
    }  # fmt: skip
    assert without - elsewhere == set()


def test_the_same_run_twice(script, tmp_path, monkeypatch):
    """Was a traceback of pandas; `connectivity.py` and `landscape.py` say which two are one."""
    monkeypatch.chdir(tmp_path)
    assert script("train", *TINY[:2], "--tasks", "FOMC,MedMCQA", *TINY[4:], "--output-dir", "run")[0] == 0
    for name in ("connectivity", "landscape"):
        code, _, err = script(name, "--run", "run", "--run", "run")
        assert code == 2 and err.count("\n") == 1 and "both er of seed 0" in err
