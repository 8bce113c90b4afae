"""Whole models as minima: their weights read tensor by tensor, mixed, put in place and taken away again."""

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, MixtralConfig

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.loading import load_base
from mcanalysis.models.weight_files import AdaptedWeights, WeightFiles, saved_tensors
from mcanalysis.models.whole_model import WholeModel
from mcanalysis.paths import Linear
from mcanalysis.recipes.mergekit import load_weights


def fine_tuned(base_folder, folder, seed, **how):
    """A copy of the base whose weights are a tenth of their size off, as full fine-tuning leaves one."""
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(folder, **how)
    return str(folder)


@pytest.fixture(scope="module")
def folders(base_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return [
        fine_tuned(base_folder, root / "first", 1),
        fine_tuned(base_folder, root / "second", 2, max_shard_size="20KB"),  # in shards
    ]


@pytest.fixture
def whole(base_folder, folders):
    network, tokenizer = load_base(str(base_folder))
    weights = [WeightFiles(place, network, tokenizer) for place in (str(base_folder), *folders)]
    return WholeModel(network, tokenizer, str(base_folder), weights)


def ids():
    return torch.tensor([[5, 17, 40, 3, 9, 22]])


def test_a_point_between_is_the_lerp_of_the_state_dicts_and_is_undone(whole, base_folder, folders):
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    mixed = AutoModelForCausalLM.from_pretrained(base_folder)
    mixed.load_state_dict({name: torch.lerp(first[name], second[name], 0.3) for name in first})
    before = {name: tensor.clone() for name, tensor in whole.network.state_dict().items()}
    path = Linear(whole.minimum(1), whole.minimum(2), space="delta")
    with whole.in_place(path(0.3)) as network, torch.no_grad():
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, mixed.state_dict()[name], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(network(ids()).logits, mixed(ids()).logits, rtol=1e-4, atol=1e-4)
        assert network.get_output_embeddings().weight is network.get_input_embeddings().weight  # still tied
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.network.state_dict().items())
    with whole.in_place(path(1.0)) as network:
        assert all(torch.equal(tensor, second[name]) for name, tensor in network.state_dict().items())


def test_distances_are_those_of_the_weights(whole, folders):
    states = [load_file(f"{folders[0]}/model.safetensors"), {}]
    for shard in json.loads(Path(folders[1], "model.safetensors.index.json").read_text())["weight_map"].values():
        states[1] |= load_file(f"{folders[1]}/{shard}")
    wanted = sum((states[0][n].double() - states[1][n].double()).square().sum() for n in states[0]).sqrt()
    assert float(whole.distances[1, 2]) == pytest.approx(float(wanted), rel=1e-6)


def test_no_more_than_a_tensor_of_each_model_is_in_memory(whole):
    alive, most = weakref.WeakSet(), []

    class Watched(dict):
        def __init__(self, files):
            super().__init__(dict.fromkeys(files))
            self.files = files

        def __getitem__(self, name):
            tensor = self.files[name]
            alive.add(tensor)
            most.append(len(alive))
            return tensor

    whole.weights = [Watched(files) for files in whole.weights]
    with whole.in_place(Linear(whole.minimum(1), whole.minimum(2))(0.5)):
        assert len(most) >= 2 * len(saved_tensors(whole.network)) and max(most) <= 4  # two, and the two before


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 keeps its weights transposed
def test_dora_is_what_peft_merges(architecture, tiny_base, tokenizer, base_folder, tmp_path):
    def base():
        return AutoModelForCausalLM.from_pretrained(base_folder) if architecture == "llama" else tiny_base("gpt2")

    targets = ["q_proj", "o_proj", "down_proj"] if architecture == "llama" else ["c_attn", "c_proj"]
    base().save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    peft = get_peft_model(base(), LoraConfig(use_dora=True, r=3, lora_alpha=5, target_modules=targets))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    peft.save_pretrained(tmp_path / "dora")
    wanted = PeftModel.from_pretrained(base(), tmp_path / "dora").merge_and_unload()
    network = base()
    adapter = load_adapter(tmp_path / "dora", dora=True)
    found = AdaptedWeights(WeightFiles(str(tmp_path / "base"), network), adapter, network)
    assert len(adapter.magnitudes) and set(found) == set(saved_tensors(network))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_headless_file_is_read_by_the_names_it_lacks(whole, base_folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(base_folder).model.save_pretrained(tmp_path)
    files = WeightFiles(str(tmp_path), whole.network)
    assert torch.equal(files["model.norm.weight"], whole.weights[0]["model.norm.weight"])


ARCHITECTURES = ["llama", "mistral", "phi3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_are_those_that_transformers_loads(architecture, tiny_base, tmp_path):
    tiny_base(architecture).save_pretrained(tmp_path)
    network = AutoModelForCausalLM.from_pretrained(tmp_path)
    files = WeightFiles(str(tmp_path), network)
    assert set(files) == set(saved_tensors(network))
    assert all(torch.equal(files[name], tensor) for name, (tensor, _) in saved_tensors(network).items())


def test_tensors_that_are_put_together_are_refused(tmp_path):
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    AutoModelForCausalLM.from_config(MixtralConfig(**shape)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"experts.*which transformers puts together"):
        WeightFiles(str(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path))


def change(folder, **tensors):
    file = folder / "model.safetensors"
    kept = load_file(file) | tensors
    save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, file, metadata={"format": "pt"})


def change_config(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


BROKEN = {
    "another vocabulary": (
        lambda f: change(f, **{"model.embed_tokens.weight": torch.zeros(11, 32)}),
        "'model.embed_tokens.weight' of shape",
    ),
    "a layer less": (lambda f: change(f, **{"model.norm.weight": None}), "a tensor 'model.norm.weight'"),
    "a layer more": (lambda f: change(f, extra=torch.zeros(2)), "got 'extra' besides"),
    "untied": (lambda f: change(f, **{"lm_head.weight": torch.zeros(3, 3)}), "'lm_head.weight' equal to"),
    "8 bits": (lambda f: change(f, **{"model.norm.weight": torch.zeros(32, dtype=torch.int8)}), "got I8"),
    "another configuration": (lambda f: change_config(f, rms_norm_eps=0.5), "Expected rms_norm_eps 1e-06"),
    "damaged": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 90), "a damaged model.safetensors"),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pytorch_model.bin, a pickle",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "got no model.safetensors"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_no_model_of_this_base_is_refused_in_one_line(how, whole, folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "broken")
    breaks, words = BROKEN[how]
    breaks(tmp_path / "broken")
    with pytest.raises(UserError) as caught:
        WeightFiles(str(tmp_path / "broken"), whole.network, whole.tokenizer)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_with_two_sets_of_weights_is_what_transformers_makes_of_it(base_folder, tmp_path, caplog):
    """A later save in shards leaves the file of the first, which transformers goes on taking."""
    place = fine_tuned(base_folder, tmp_path / "both", 1)
    fine_tuned(base_folder, tmp_path / "both", 2, max_shard_size="20KB")
    network, tokenizer = load_base(str(base_folder))
    weights = WeightFiles(place, network, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(place).state_dict()
    assert "index of shards beside it: model.safetensors is taken" in caplog.text
    assert weights.keys() <= theirs.keys()
    for name in weights:
        assert torch.equal(weights[name], theirs[name])
    found = load_weights(place)
    assert all(torch.equal(found[name], theirs[name]) for name in found)


def test_a_missing_shard_optimizer_states_and_another_tokenizer_are_refused(whole, base_folder, folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "shards")
    gone = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=f"got no {gone.name}, which its index names"):
        WeightFiles(str(tmp_path / "shards"), whole.network)
    (tmp_path / "states").mkdir()
    (tmp_path / "states/optimizer.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"got optimizer states only \(optimizer.pt\)"):
        WeightFiles(str(tmp_path / "states"), whole.network)
    shutil.copytree(base_folder, tmp_path / "tokens")
    tree = json.loads((tmp_path / "tokens/tokenizer.json").read_text())
    words = tree["model"]["vocab"]
    tree["model"]["vocab"] = words | {":": words["!"], "!": words[":"]}
    (tmp_path / "tokens/tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(PointMismatchError, match="Expected the tokenizer of the base"):
        WeightFiles(str(tmp_path / "tokens"), whole.network, whole.tokenizer)


def test_weights_that_are_no_numbers_are_refused(whole):
    whole.weights[2] = dict(whole.weights[2]) | {"model.norm.weight": torch.full((32,), torch.nan)}
    with pytest.raises(UserError, match=r"in 'model\.norm\.weight' of minimum 2"):
        _ = whole.distances


def test_half_precision_is_said_and_saved_models_are_those_of_the_point(whole, base_folder, tmp_path, caplog):
    WholeModel(load_base(str(base_folder), "bfloat16")[0], None, "x", whole.weights)
    assert "are rounded; --dtype float32" in caplog.text
    point = Linear(whole.minimum(1), whole.minimum(2))(0.25)
    whole.save(tmp_path, point)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    with whole.in_place(point) as network, torch.no_grad():
        loss = cross_entropy(network(ids()).logits[0, :-1], ids()[0, 1:])
        assert float(loss) == pytest.approx(float(saved(ids(), labels=ids()).loss), rel=1e-5)
    with pytest.raises(PointMismatchError, match="Expected a point of 3 shares"), whole.in_place({"w": torch.ones(1)}):
        pass


def test_a_model_of_the_hub_is_read_from_its_cache(whole, folders, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--tuned"
    shutil.copytree(folders[1], repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    files = WeightFiles("org/tuned", whole.network)
    assert all(torch.equal(files[name], whole.weights[2][name]) for name in files)
    with pytest.raises(UserError, match="got 'org/absent'"):
        WeightFiles("org/absent", whole.network)
