"""What is given as a base and is none, brings its own code, or is spelled in another way than in an adapter."""

import ast
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.models.adapter_files import save_adapter
from mcanalysis.models.base_names import check_same_base, same_base
from mcanalysis.models.base_source import EMBEDDED_DIRECTORY
from mcanalysis.models.loading import load_base, load_shape, load_tokenizer
from mcanalysis.studies.adapters import AdapterConnectivity, AdaptersOpening, connect_adapters
from mcanalysis.training.config import RunConfig
from mcanalysis.training.dry_run import dry_run

ANALYSES = Path(__file__).parents[2] / "analyses"
LOADERS = (load_base, load_shape, load_tokenizer)


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """`script("train", "--steps", "1")` gives (exit code, stderr), in an empty working folder."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        monkeypatch.syspath_prepend(str(ANALYSES))
        spec = importlib.util.spec_from_file_location(f"script_{name}", ANALYSES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            module.run_script(module.main)
        return end.value.code, capsys.readouterr().err

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return run


@pytest.fixture
def adapter(base_folder, tmp_path, make_model, random_point):
    """A PEFT adapter on the tiny base, of modules that training here would not touch."""
    save_adapter(random_point(make_model(target_modules=("up_proj",)), 1), tmp_path / "adapter", str(base_folder))
    return tmp_path / "adapter"


# --- an adapter as the base


def test_transformers_would_load_the_base_with_the_adapter_on_it(adapter):
    """What is refused below."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(adapter)
    assert any("lora_A" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("load", LOADERS)
def test_an_adapter_is_no_base_and_its_base_is_named(adapter, base_folder, load):
    with pytest.raises(UserError, match=f"is a PEFT adapter of the base '{base_folder}'; pass --model {base_folder}"):
        load(str(adapter))


@pytest.mark.parametrize("load", LOADERS)
def test_a_model_with_an_adapter_beside_it_is_refused(adapter, base_folder, tmp_path, load):
    both = Path(shutil.copytree(base_folder, tmp_path / "both"))
    for file in adapter.iterdir():
        shutil.copy(file, both)
    with pytest.raises(UserError, match="holds a model and a PEFT adapter beside it"):
        load(str(both))


@pytest.mark.parametrize("load", LOADERS)
def test_an_adapter_of_the_hub_is_refused(adapter, tmp_path, monkeypatch, load):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--adapter"
    shutil.copytree(adapter, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    with pytest.raises(UserError, match="'org/adapter', which is a PEFT adapter of the base"):
        load("org/adapter")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_scripts_refuse_an_adapter_as_the_base(script, adapter, more):
    code, err = script("train", "--model", adapter, *more)
    assert code == 2 and "is a PEFT adapter of the base" in err and err.count("\n") == 1
    assert not list(Path.cwd().iterdir())


# --- wrong kinds of paths


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(("name", "words"), [("m.gguf", "Expected a whole GGUF file"), ("m.txt", "got the file")])
def test_a_file_is_no_base(script, tmp_path, name, words, more):
    (tmp_path / name).write_bytes(b"GGUF" if name == "m.gguf" else b"text")
    code, err = script("train", "--model", tmp_path / name, *more)
    assert code == 2 and words in err and err.count("\n") == 1
    for load in LOADERS:
        with pytest.raises(UserError, match=words):
            load(str(tmp_path / name))
    assert not list(Path.cwd().iterdir())


def wrong_kinds():
    two = ("--minima", "{adapter},{adapter}")
    yield "--data as a folder", "connectivity", (*two, "--data", "{folder}")
    yield "--data as an adapter's weights", "connectivity", (*two, "--data", "{adapter}/adapter_model.safetensors")
    yield "--data that is not there", "connectivity", (*two, "--data", "{folder}/none.json")
    yield "--minima as files", "connectivity", ("--minima", "{file},{file}", "--data", "{file}")
    yield "--minima as a folder", "connectivity", ("--minima", "{folder},{folder}", "--data", "{file}")
    yield "--minima that is a base", "connectivity", ("--minima", "{base},{base}", "--data", "{file}")
    yield "--run as a file", "connectivity", ("--run", "{file}")
    yield "--run as a folder", "curvature", ("--run", "{folder}")
    yield "--run as an adapter", "landscape", ("--run", "{adapter}")
    yield "--third as a file", "landscape", ("--run", "{folder}", "--third", "{file}")
    yield "--data-dir as a file", "train", ("--benchmark", "trace", "--data-dir", "{file}")
    yield "--data-dir as a folder", "train", ("--benchmark", "trace", "--data-dir", "{folder}")
    yield "--general-data as a file", "train", ("--general-data", "{file}")
    yield "--general-data as a folder", "train", ("--general-data", "{folder}")
    yield "--config as a folder", "train", ("--config", "{folder}")
    yield "--config as weights", "train", ("--config", "{adapter}/adapter_model.safetensors")
    yield "--config as JSON of another thing", "train", ("--config", "{file}")
    yield "--output-dir as a file", "train", ("--output-dir", "{file}", "--steps", "1", "--tasks", "FOMC")
    yield "--output-dir in a file", "train", ("--output-dir", "{file}/x", "--steps", "1", "--tasks", "FOMC")
    yield "report of a file", "report", ("--run", "{file}")


@pytest.mark.parametrize(("name", "flags"), [pytest.param(n, f, id=i) for i, n, f in wrong_kinds()])
def test_a_path_of_the_wrong_kind_is_one_line(script, adapter, base_folder, tmp_path, name, flags):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.json").write_text(json.dumps([{"prompt": "x", "answer": "y"}]))
    places = {"adapter": adapter, "folder": tmp_path / "folder", "file": tmp_path / "file.json", "base": base_folder}
    code, err = script(name, *(flag.format(**places) for flag in flags))
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: "), err
    assert not list(Path.cwd().iterdir()) and not list((tmp_path / "folder").iterdir())


# --- code that comes with a model

CODE = """
from pathlib import Path
Path(__file__).with_name("it_ran").write_text("")
Path({place!r}).write_text("")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
OWN = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture
def with_code(base_folder, tmp_path):
    """with_code("own") -> a base with code of its own and the file that appears when it is run."""

    def make(model_type):
        folder = Path(shutil.copytree(base_folder, tmp_path / "with_code"))
        (folder / "own.py").write_text(CODE.format(place=str(tmp_path / "it_ran")))
        change = {"model_type": model_type, "auto_map": OWN}
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer |= {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(CODE.format(place=str(tmp_path / "it_ran")))
        return folder, tmp_path / "it_ran"

    return make


def test_the_code_of_a_base_is_never_run(with_code, monkeypatch):
    folder, mark = with_code("own")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for load in (load_base, load_shape):
        with pytest.raises(UserError, match=r"code of its own \(auto_map in its configuration\), and that is not run"):
            load(str(folder))
    with pytest.raises(UserError):
        dry_run(RunConfig(model=str(folder)))
    assert not mark.exists()


def test_a_base_that_transformers_knows_is_loaded_by_its_own_code(with_code, monkeypatch):
    folder, mark = with_code("llama")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    model, _ = load_base(str(folder))
    assert type(model).__module__.startswith("transformers.models.llama") and not mark.exists()


@pytest.mark.slow
def test_a_yes_on_standard_input_runs_nothing(with_code, tmp_path):
    folder, mark = with_code("own")
    answer = subprocess.run(
        [sys.executable, ANALYSES / "train.py", "--model", folder, "--output-dir", tmp_path / "out", "--dry-run"],
        input="y\ny\n", capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False,
    )  # fmt: skip
    assert answer.returncode == 2 and not mark.exists() and not (tmp_path / "out").exists()
    assert answer.stderr.count("\n") == 1 and "code of its own" in answer.stderr


def test_a_pickle_that_runs_code_is_not_unpickled(base_folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'it_ran'}",)

    folder = Path(shutil.copytree(base_folder, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError):
        load_base(str(folder))
    assert not (tmp_path / "it_ran").exists()


def test_a_base_in_a_plain_pickle_of_tensors_is_read(base_folder, tmp_path):
    model, _ = load_base(str(base_folder))
    folder = Path(shutil.copytree(base_folder, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    read, _ = load_base(str(folder))
    for (name, one), (_, other) in zip(model.named_parameters(), read.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_weights_cut_in_half_are_one_line(base_folder, tmp_path):
    folder = Path(shutil.copytree(base_folder, tmp_path / "half"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="Expected a causal language model"):
        load_base(str(folder))


# --- the same base by another name

LLAMA = "meta-llama/Llama-2-7b-hf"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (LLAMA, LLAMA + "/", True),
        (LLAMA, "Meta-Llama/llama-2-7B-HF", True),
        (LLAMA, "/home/ann/.cache/huggingface/hub/models--meta-llama--Llama-2-7b-hf/snapshots/01c7f73d", True),
        (LLAMA, "NousResearch/Llama-2-7b-hf", None),
        (LLAMA, "unsloth/llama-2-7b", None),
        (LLAMA, "unsloth/llama-2-7b-bnb-4bit", None),
        ("meta-llama/Meta-Llama-3-8B", "unsloth/llama-3-8b-unsloth-bnb-4bit", None),
        (LLAMA, "/mnt/models/Llama-2-7b-hf", None),
        (LLAMA, "/mnt/models/base", None),
        ("/a/base", "/b/base/", None),
        (LLAMA, "meta-llama/Llama-2-13b-hf", False),
        (LLAMA, "meta-llama/Llama-2-7b-chat-hf", False),
        (LLAMA, "mistralai/Mistral-7B-v0.1", False),
        ("embedded", str(EMBEDDED_DIRECTORY), True),
    ],
)
def test_names_of_one_base(first, second, same):
    assert same_base(first, second) is same and same_base(second, first) is same


def test_folders_on_this_machine_are_compared_by_their_weights(base_folder, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(base_folder, tmp_path / "copy"))
    (copy / "chat_template.jinja").write_text("the weights are the same")
    (tmp_path / "link").symlink_to(base_folder)
    monkeypatch.chdir(base_folder.parent)
    for name in (f"{base_folder}/", f"./{base_folder.name}", f"../{base_folder.parent.name}/{base_folder.name}",
                 str(tmp_path / "link"), str(copy)):  # fmt: skip
        assert same_base(str(base_folder), name) is True, name
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert same_base(str(base_folder), str(copy)) is False
    with pytest.raises(PointMismatchError, match="write the same base_model_name_or_path into both"):
        check_same_base([str(base_folder), str(copy)])


def test_adapters_whose_bases_cannot_be_compared_are_measured_with_one_warning(
    base_folder, tmp_path, make_model, random_point, monkeypatch, caplog
):
    monkeypatch.setattr(AdapterConnectivity, "pictures", lambda *_: ())
    names = {"here": str(base_folder), "slash": f"{base_folder}/", "far": "/another/machine/base", "hub": LLAMA,
             "other": "mistralai/Mistral-7B-v0.1"}  # fmt: skip
    for seed, (folder, name) in enumerate(names.items()):
        save_adapter(random_point(make_model(), seed % 2), tmp_path / folder, name)
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": "river:", "answer": "stone"}] * 3))
    settings = AdapterConnectivity(num_points=2, num_examples=3, paths=("linear-factor",))

    def told(*folders):
        caplog.clear()
        places, data = tuple(str(tmp_path / f) for f in folders), (str(tmp_path / "data.json"),)
        opening = AdaptersOpening(places, str(base_folder), data, tmp_path / "-".join(folders), device="cpu")
        with caplog.at_level(logging.WARNING):
            connect_adapters(opening, settings)
        return [r.getMessage() for r in caplog.records if "base_model_name_or_path" in r.getMessage()]

    assert told("here", "slash") == []
    for folders in (("here", "far"), ("far", "hub")):
        lines = told(*folders)
        assert len(lines) == 1 and all(names[f] in lines[0] for f in folders)
    with pytest.raises(PointMismatchError, match="Expected adapters of one base model"):
        told("hub", "other")


def test_two_files_load_models_and_never_with_their_code():
    package = Path(__file__).parents[2] / "mcanalysis"
    for file in package.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("from_pretrained", "from_config"):
                if file.name == "weighted_adapter.py":  # PEFT's adapters on layers made here
                    continue
                assert file.name in ("loading.py", "gguf_conversion.py"), f"{file}:{call.lineno}"
                passed = ast.unparse(call)
                assert "_source_settings(" in passed or "trust_remote_code=False" in passed, f"{file}:{call.lineno}"
            assert not (isinstance(call, ast.Attribute) and ast.unparse(call) == "torch.load"), f"{file}:{call.lineno}"
