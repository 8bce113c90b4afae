"""Bad input ends with one clear line on stderr, exit code 2, and nothing written."""

import json

import pytest

from mcanalysis.store.manifest import write_manifest

TINY = ("--steps", 1, "--num-train", 8, "--num-test", 2, "--batch-size", 2, "--num-points", 3, "--num-examples", 2)


def refused(result, *pieces):
    code, out, err = result
    assert code == 2, (code, out, err)
    line = err.strip()
    assert "\n" not in line and line.startswith("error: ")
    for piece in pieces:
        assert piece in line, line
    return line


def trace_folder(tmp_path, **splits):
    """A TRACE-form folder with one good task, whose splits can be replaced by other text (None: no file)."""
    good = json.dumps([{"prompt": f"Text {i}\nLabel:", "answer": "AB"[i % 2]} for i in range(8)])
    folder = tmp_path / "data" / "FOMC"
    folder.mkdir(parents=True)
    for split in ("train", "eval", "test"):
        text = splits.get(split, good)
        if text is not None:
            (folder / f"{split}.json").write_text(text)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (("--num-points", 1), ("num_points of at least 2", "got 1", "--num-points")),
        (("--strategy", "sequental"), ("Unknown strategy 'sequental'", "Did you mean 'sequential'?")),
        (("--tasks", "FOMCC,C-STANCE"), ("FOMCC", "Did you mean 'FOMC'?")),
        (("--benchmark", "tracee"), ("Unknown benchmark 'tracee'", "Did you mean 'trace'?")),
        (("--model", "embeded"), ("Unknown model 'embeded'", "Did you mean 'embedded'?")),
        (("--model", "./no/such/folder"), ("model folder", "does not exist", "--model")),
        (("--benchmark", "trace"), ("--data-dir",)),
        (("--benchmark", "trace", "--data-dir", "/no/such"), ("/no/such",)),
        (("--settings", "ema_decy=0.5"), ("ema_decy", "Did you mean 'ema_decay'?")),
        (("--settings", "ema_decay=1.5"), ("ema_decay in [0, 1]", "got 1.5")),
        (("--steps", "many"), ("--steps", "many")),
        (("--steps", 0), ("num_steps of at least 1", "got 0")),
        (("--paths", "cubic"), ("Unknown path 'cubic'", "linear-factor")),
        (("--device", "cuda:99"), ("device of this machine", "cuda:99")),
        (("--dtype", "float31"), ("Unknown dtype", "Did you mean")),
        (("--minima", "a,b"), ("--minima", "--data")),
        (("--minima", "a,b", "--data", "nope.json"), ("nope.json",)),
        (("--minima", "a,b", "--data", "nope.json", "--general-data", "held"), ("--minima", "--general-data")),
        (("--minima", "a,b", "--data", "nope.json", "--run", "runs/a"), ("--minima", "--run")),
        (("--run", "/no/such/run"), ("/no/such/run", "run directory")),
        (("--config", "/no/such.yaml"), ("/no/such.yaml", "--config")),
        (("--no-such-flag",), ("--no-such-flag",)),
        (("--num-point", 3), ("unrecognized arguments: --num-point 3 (did you mean --num-points?)",)),
        (("--engine", "compield"), ("Unknown way of evaluating for --engine 'compield'", "Did you mean 'compiled'?")),
        (("--token-budget", 0), ("token_budget of at least 1, got 0",)),
    ],
)
def test_flags(script, tmp_path, arguments, pieces):
    refused(script("connectivity", *arguments), *pieces)
    assert not any(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize(
    ("split", "text", "pieces"),
    [
        ("eval", None, ("eval.json",)),
        ("test", "[]", ("test.json", "empty")),
        ("train", '{"prompt": "a"}', ("train.json", "list")),
        ("train", '[{"prompt": "a", "answer": "b"}, {"prompt": "a"}]', ("train.json", "1", "answer")),
        ("train", '[{"prompt": "a", "answer": 3}]', ("train.json", "0", "answer")),
        ("train", "[oops", ("train.json", "line 1")),
    ],
)
def test_trace_files(script, tmp_path, split, text, pieces):
    data = trace_folder(tmp_path, **{split: text})
    refused(script("connectivity", "--benchmark", "trace", "--data-dir", data), *pieces)
    assert not (tmp_path / "runs").exists()


def test_a_task_without_a_folder_is_named_with_those_present(script, tmp_path):
    data = trace_folder(tmp_path)
    refused(
        script("connectivity", "--benchmark", "trace", "--data-dir", data, "--tasks", "FOMC,Py150"), "Py150", "FOMC"
    )


def test_output_directory_of_another_configuration(script, tmp_path):
    run = ("train", "--strategy", "sequential", "--tasks", "FOMC,MedMCQA", *TINY[:8])
    assert script(*run, "--output-dir", tmp_path / "run")[0] == 0
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*") if p.is_file())
    line = refused(script(*run, "--output-dir", tmp_path / "run", "--learning-rate", "0.5"), "learning_rate")
    assert "0.003" in line and "0.5" in line
    after = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert before == after
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    refused(script(*run, "--output-dir", tmp_path / "other"), "thesis.tex")


def test_a_model_without_lora_able_layers(script, tmp_path):
    refused(script("train", "--target-modules", "no_such_proj", *TINY[:8]), "LoRA-able", "no_such_proj", "q_proj")
    assert not (tmp_path / "runs").exists()


def test_config_file_is_checked_and_overridden(script, tmp_path):
    (tmp_path / "run.yaml").write_text("stratgy: er\n")
    refused(script("train", "--config", "run.yaml"), "stratgy", "Did you mean 'strategy'?")
    (tmp_path / "run.yaml").write_text("strategy: er\ntasks: [FOMC, MedMCQA]\nsteps: 1\nnum-train: 8\nnum-test: 2\n")
    code, out, _ = script("train", "--config", "run.yaml", "--strategy", "sequential", "--batch-size", 2)
    assert code == 0 and "sequential / fast" in out


def test_an_unfinished_run_is_refused_without_resume(script, tmp_path):
    run = ("train", "--strategy", "er", "--tasks", "FOMC,MedMCQA", *TINY[:8], "--output-dir", tmp_path / "run")
    assert script(*run)[0] == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["status"] = "running"
    write_manifest(tmp_path / "run", manifest)
    refused(script(*run), "--resume")
    refused(script("connectivity", "--run", tmp_path / "run"), "finished run")
    assert script(*run, "--resume")[0] == 0


def test_run_with_one_minimum(script, tmp_path):
    assert script("train", "--strategy", "er", "--tasks", "FOMC", *TINY[:8], "--output-dir", tmp_path / "run")[0] == 0
    refused(script("connectivity", "--run", tmp_path / "run"), "at least two minima", "got 1")


def test_adapters_that_a_space_cannot_join_leave_nothing_behind(script, tmp_path):
    for rank in (2, 4):
        flags = ("--strategy", "sequential", "--tasks", "FOMC", "--lora-rank", rank, *TINY[:8])
        assert script("train", *flags, "--output-dir", tmp_path / f"rank{rank}")[0] == 0
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": f"{i}:", "answer": "A"} for i in range(3)]))
    minima = ",".join(str(tmp_path / f"rank{r}" / "minima" / "1-FOMC" / "fast") for r in (2, 4))
    flags = ("--minima", minima, "--data", "data.json", "--num-points", 3, "--output-dir", "out")
    refused(script("connectivity", *flags), "rank", "delta")
    assert not (tmp_path / "out").exists()
    code, _, err = script("connectivity", *flags, "--paths", "linear-delta")
    assert code == 0, err


def test_finished_runs_that_tables_cannot_tell_apart_are_refused(script, tmp_path):
    for name, strategy, seed, tasks in (("a", "er", 0, "AB"), ("b", "er", 0, "AB"), ("c", "er", 1, "BA")):
        config = {"strategy": strategy, "seed": seed, "tasks": list(tasks)}
        manifest = {"status": "finished", "config": config, "hashes": {"data": {}}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    refused(script("connectivity", "--run", "a", "--run", "b"), "'a' and 'b', both er of seed 0")
    refused(script("curvature", "--run", "a", "--run", "c"), "got A, B in 'a' and B, A in 'c'")
