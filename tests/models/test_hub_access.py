"""Models of the hub: a hub that does not answer is told within seconds, and `--revision` is what is loaded."""

import json
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcanalysis.errors import UserError
from mcanalysis.models import hub_access
from mcanalysis.models.base_identity import base_identity
from mcanalysis.models.loading import load_base, load_shape, load_tokenizer
from mcanalysis.runs.run import load_run
from mcanalysis.training.config import RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import train

LOADERS = (load_base, load_shape, load_tokenizer)
A, B = "a" * 40, "b" * 40


@pytest.fixture
def hub(base_folder, tmp_path, monkeypatch):
    """A cache with org/tiny, whose `main` is at one commit and whose `side` is at another; nobody is asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    for ref, commit in (("main", A), ("side", B)):
        shutil.copytree(base_folder, repository / "snapshots" / commit)
        (repository / "refs" / ref).write_text(commit)
    weights = repository / "snapshots" / B / "model.safetensors"
    save_file({k: -v if "layers.0" in k else v for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    return repository


@pytest.fixture
def silent_hub(tmp_path, monkeypatch):
    """A hub that takes connections and says nothing; none of its models are here."""
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_access, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


@pytest.mark.parametrize("load", LOADERS)
def test_a_hub_that_does_not_answer_is_one_line(silent_hub, load):
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"'no/such', got no copy .* no connection to 127\.0\.0\.1 \(.+\); set"
    ) as refusal:
        load("no/such")
    assert time.monotonic() - start < 3 and "\n" not in str(refusal.value)


def test_a_model_that_is_here_is_read_though_the_hub_does_not_answer(silent_hub, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    base, _ = load_base("org/tiny")
    assert time.monotonic() - start < 3
    side, _ = load_base("org/tiny", revision="side")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(base.get_parameter(name), -side.get_parameter(name))


def test_a_proxy_that_answers_for_a_hub_it_does_not_reach_is_no_hub(monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    class Answer:
        status_code, headers, request = 502, {}, None

    def refuse(*_, **__):
        raise HfHubHTTPError("bad gateway", response=Answer())

    monkeypatch.setattr(HfApi, "model_info", refuse)
    assert hub_access._no_answer("org/x", None, "http://localhost:9") == "the answer is error 502"
    Answer.status_code = 404
    assert hub_access._no_answer("org/x", None, "http://localhost:9") == ""


def test_a_hub_that_was_out_of_reach_is_asked_again_later(monkeypatch):
    from huggingface_hub import constants

    answers = ["away", ""]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_access, "_no_answer", lambda *_: answers.pop(0))
    monkeypatch.setattr(hub_access, "_asked", {})
    for _ in range(2):
        with pytest.raises(UserError, match="away"):
            hub_access.local_copy("org/none")
    monkeypatch.setattr(hub_access, "_REMEMBERED", -1.0)
    assert hub_access.local_copy("org/none") is None


def test_a_revision_is_what_is_loaded_and_what_is_recorded(hub, make_tasks, tmp_path):
    assert [base_identity("org/tiny", r) for r in (None, "side", B, "none")] == [
        f"commit-2:{A}", f"commit-2:{B}", f"commit-2:{B}", None
    ]  # fmt: skip
    training = TrainingConfig(num_steps=1, batch_size=2, max_length=64)
    config = RunConfig(strategy="sequential", model="org/tiny", revision="side", lora_rank=2, training=training)
    tasks = make_tasks(num_train=4, num_test=2)
    train(config, tmp_path / "run", device="cpu", tasks=tasks)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["revision"] == "side" and manifest["hashes"]["base"] == f"commit-2:{B}"
    (hub / "refs" / "side").write_text(A)  # the branch moves on, the run does not
    weight = load_run(tmp_path / "run", "cpu").model.base.get_submodule("model.layers.0.mlp.up_proj").weight
    assert torch.equal(weight, load_base("org/tiny", revision=B)[0].get_submodule("model.layers.0.mlp.up_proj").weight)
    assert not train(config, tmp_path / "run", device="cpu", tasks=tasks)
    assert RunConfig.from_resolved(RunConfig(model="org/tiny").resolved()).revision is None


def test_only_a_model_of_the_hub_has_revisions(script, base_folder, tmp_path):
    for name in ("embedded", base_folder):
        code, _, err = script("train", "--model", name, "--revision", "side", "--output-dir", tmp_path / "out")
        assert code == 2 and "Expected --revision with a model of the hub" in err and err.count("\n") == 1
        with pytest.raises(UserError, match="--revision with a model of the hub"):
            load_tokenizer(str(name), "side")
    assert not (tmp_path / "out").exists()
