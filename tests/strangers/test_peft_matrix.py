"""All that PEFT writes for a causal LM has PEFT's own logits here, or is refused by name: settings × architectures.

A cell is one setting on one architecture: a random tiny model, an adapter that PEFT saved with random A and B. `equal`:
PEFT loads the folder and gives logits; ours are the same to 1e-5 of their size, merged and unmerged, and so are PEFT's
of what `save_adapter` writes back. `refused`: reading it, or attaching it to the base, raises a `UserError` that names
the setting. The counts stand in docs/adapters-read.md, which is held to what is declared here.
"""

import dataclasses
import json
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers as t
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    CordaConfig,
    KasaConfig,
    LoraRuntimeConfig,
    MontecloraConfig,
    VeloraConfig,
)
from safetensors.torch import save_file

from mcanalysis.errors import UserError
from mcanalysis.evaluation.adapter_objective import attach_slot
from mcanalysis.models import adapter_config
from mcanalysis.models.adapter_files import load_adapter, save_adapter
from mcanalysis.models.target_modules import find_target_modules

PAGE = Path(__file__).parents[2] / "docs" / "adapters-read.md"
VOCABULARY = 64
IDS = torch.arange(3, 43).reshape(2, 20) % VOCABULARY

_ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, **_ids}
_grouped = {"intermediate_size": 48, "num_key_value_heads": 1, **_shape}
_gemma = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, **_grouped}
_experts = {"sliding_window": None, **_grouped}
ARCHITECTURES = {
    "Llama": lambda: t.LlamaConfig(**_grouped),
    "tied Llama": lambda: t.LlamaConfig(tie_word_embeddings=True, **_grouped),
    "Qwen2": lambda: t.Qwen2Config(**_grouped),
    "Qwen3": lambda: t.Qwen3Config(head_dim=16, **_grouped),
    "Gemma 2": lambda: t.Gemma2Config(attn_logit_softcapping=5.0, final_logit_softcapping=3.0, **_gemma),
    "Gemma 3": lambda: t.Gemma3TextConfig(layer_types=["sliding_attention", "full_attention"], **_gemma),
    "Mistral": lambda: t.MistralConfig(sliding_window=8, **_grouped),
    "GPT-2": lambda: t.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **_ids),
    "GPT-NeoX": lambda: t.GPTNeoXConfig(intermediate_size=48, **_shape),
    "OPT": lambda: t.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **_shape),
    "Phi": lambda: t.PhiConfig(intermediate_size=48, **_shape),
    "Mixtral": lambda: t.MixtralConfig(num_local_experts=4, **_experts),
    "Qwen3 MoE": lambda: t.Qwen3MoeConfig(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=16, **_experts
    ),
}
EXPERTS = ("Mixtral", "Qwen3 MoE")


def base(architecture):
    """The same random weights each time, twice the usual size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(2.0)
    return model.eval()


def targets(model):
    """The last names of the attention's projections."""
    return sorted({name.rsplit(".", 1)[-1] for name in find_target_modules(model)})


@dataclasses.dataclass(frozen=True)
class Setting:
    """`make(model)` gives what differs from a plain LoraConfig; `refused` is what the line has to name."""

    make: object = lambda model: {}
    refused: str | None = None
    only_on: tuple = ()  # the architectures that `refused` is about, where the others are equal
    architectures: tuple = tuple(ARCHITECTURES)
    written: dict = dataclasses.field(default_factory=dict)  # into the saved file: what PEFT writes after preparations
    save: object = None

    def on(self, architecture):
        return architecture in self.architectures

    def refused_on(self, architecture):
        return self.refused if not self.only_on or architecture in self.only_on else None


def _in(dtype):
    def save(network, folder):
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.to(dtype)
        network.save_pretrained(folder)

    return save


def _second(network, folder):
    network.add_adapter(
        "second", LoraConfig(r=2, lora_alpha=5, target_modules=network.peft_config["default"].target_modules)
    )
    randomise(network, 5)
    network.save_pretrained(folder)


def _plus(name):
    return lambda model: {"target_modules": [*targets(model), name(model)]}


def _embedding_name(model):
    return next(n for n, m in model.named_modules() if m is model.get_input_embeddings()).rsplit(".", 1)[-1]


def _head_name(model):
    return next(n for n, m in model.named_modules() if m is model.get_output_embeddings()).rsplit(".", 1)[-1]


def _norm_name(model):
    return next(n for n, m in model.named_modules() if "norm" in type(m).__name__.lower()).rsplit(".", 1)[-1]


_first_layer = r"\w+\.0\..*"
SETTINGS = {
    "plain": Setting(),
    "α/r no power of two": Setting(lambda m: {"r": 3, "lora_alpha": 16}),
    "lora_alpha with a fraction": Setting(lambda m: {"lora_alpha": 2.5}),
    "use_rslora": Setting(lambda m: {"use_rslora": True}),
    "rank_pattern": Setting(lambda m: {"rank_pattern": {targets(m)[0]: 2}}),
    "alpha_pattern": Setting(lambda m: {"alpha_pattern": {targets(m)[0]: 20}}),
    "alpha_pattern, a regular expression": Setting(lambda m: {"alpha_pattern": {_first_layer + targets(m)[0]: 20}}),
    "both patterns with use_rslora": Setting(
        lambda m: {"use_rslora": True, "rank_pattern": {targets(m)[0]: 2}, "alpha_pattern": {_first_layer: 5}}
    ),
    "target_modules 'all-linear'": Setting(
        lambda m: {"target_modules": "all-linear"}, "target_parameters", only_on=EXPERTS
    ),
    "target_modules, a regular expression": Setting(
        lambda m: {"target_modules": rf".*\.1\..*({'|'.join(targets(m))})"}
    ),
    "exclude_modules": Setting(
        lambda m: {"target_modules": "all-linear", "exclude_modules": [targets(m)[0]]},
        "target_parameters",
        only_on=EXPERTS,
    ),
    "layers_to_transform": Setting(lambda m: {"layers_to_transform": [1]}),
    "layers_pattern": Setting(
        lambda m: {"layers_to_transform": 0, "layers_pattern": ["layers", "h"]},
    ),
    "lora_dropout": Setting(lambda m: {"lora_dropout": 0.3}),
    "fan_in_fan_out set wrongly": Setting(lambda m: {"fan_in_fan_out": True}),
    "init_lora_weights False": Setting(lambda m: {"init_lora_weights": False}),
    "init_lora_weights 'gaussian'": Setting(lambda m: {"init_lora_weights": "gaussian"}),
    "init_lora_weights 'orthogonal'": Setting(lambda m: {"init_lora_weights": "orthogonal"}),
    "init_lora_weights 'eva'": Setting(lambda m: {"init_lora_weights": "eva"}),
    "corda_config without its initialisation": Setting(lambda m: {"corda_config": CordaConfig()}),
    "runtime_config": Setting(lambda m: {"runtime_config": LoraRuntimeConfig(ephemeral_gpu_offload=True)}),
    "ensure_weight_tying": Setting(lambda m: {"ensure_weight_tying": True}),
    "megatron_core": Setting(lambda m: {"megatron_core": "another.core"}),
    "qalora_group_size": Setting(lambda m: {"qalora_group_size": 8}),
    "saved in bfloat16": Setting(lambda m: {"r": 3, "lora_alpha": 16}, save=_in(torch.bfloat16)),
    "saved in float16": Setting(lambda m: {"r": 3, "lora_alpha": 16}, save=_in(torch.float16)),
    "saved in float8": Setting(save=_in(torch.float8_e4m3fn)),
    "the first of two adapters": Setting(save=_second),
    # Refused, each by its name.
    "use_dora": Setting(lambda m: {"use_dora": True}, "DoRA"),
    "bias 'all'": Setting(lambda m: {"bias": "all"}, "bias 'all'"),
    "bias 'lora_only'": Setting(lambda m: {"bias": "lora_only"}, "bias 'lora_only'"),
    "lora_bias": Setting(lambda m: {"lora_bias": True}, "lora_bias True"),
    "modules_to_save": Setting(lambda m: {"modules_to_save": [_norm_name(m)]}, "modules_to_save"),
    "trainable_token_indices": Setting(lambda m: {"trainable_token_indices": [5, 6]}, "trainable_token_indices"),
    "an embedding as target": Setting(_plus(_embedding_name), "embedding"),
    "the output layer as target": Setting(_plus(_head_name), "output layer"),
    "init_lora_weights 'pissa'": Setting(lambda m: {"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    "init_lora_weights 'pissa_niter_2'": Setting(
        lambda m: {"init_lora_weights": "pissa_niter_2"}, "init_lora_weights 'pissa_niter_2'"
    ),
    "init_lora_weights 'olora'": Setting(lambda m: {"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
    "init_lora_weights 'mica'": Setting(lambda m: {"init_lora_weights": "mica"}, "init_lora_weights 'mica'"),
    "init_lora_weights 'corda'": Setting(written={"init_lora_weights": "corda"}, refused="init_lora_weights 'corda'"),
    "init_lora_weights 'loftq'": Setting(written={"init_lora_weights": "loftq"}, refused="init_lora_weights 'loftq'"),
    "init_lora_weights 'lora_ga'": Setting(
        written={"init_lora_weights": "lora_ga"}, refused="init_lora_weights 'lora_ga'"
    ),
    "alora_invocation_tokens": Setting(lambda m: {"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
    "use_qalora": Setting(written={"use_qalora": True}, refused="use_qalora"),
    "megatron_config": Setting(
        written={"megatron_config": {"tensor_model_parallel_size": 1}}, refused="megatron_config"
    ),
    "use_bdlora": Setting(written={"use_bdlora": dataclasses.asdict(BdLoraConfig(nblocks=2))}, refused="use_bdlora"),
    "arrow_config": Setting(written={"arrow_config": dataclasses.asdict(ArrowConfig())}, refused="arrow_config"),
    "kasa_config": Setting(
        lambda m: {"kasa_config": KasaConfig()}, "kasa_config", architectures=tuple(set(ARCHITECTURES) - {"GPT-2"})
    ),
    "monteclora_config": Setting(lambda m: {"monteclora_config": MontecloraConfig()}, "monteclora_config"),
    "velora_config": Setting(lambda m: {"velora_config": VeloraConfig(num_groups=4)}, "velora_config"),
    "layer_replication": Setting(
        lambda m: {"layer_replication": [[0, 2], [0, 2]]},
        "layer_replication",
        architectures=("Llama", "tied Llama", "Mistral"),
    ),
    "target_parameters (experts)": Setting(
        lambda m: {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        "target_parameters",
        architectures=EXPERTS,
    ),
    "saved as adapter_model.bin": Setting(
        refused="adapter_model.bin", save=lambda n, f: n.save_pretrained(f, safe_serialization=False)
    ),
    "task_type 'SEQ_CLS'": Setting(lambda m: {"task_type": "SEQ_CLS"}, "modules_to_save"),
}
OTHER_TYPES = sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind != PeftType.LORA)
CELLS = [(s, a) for s in SETTINGS for a in ARCHITECTURES if SETTINGS[s].on(a)]
# Each setting once, the architectures in turn: what `make test` looks at.
PART = [
    (name, [a for a in ARCHITECTURES if setting.on(a)][i % sum(map(setting.on, ARCHITECTURES))])
    for i, (name, setting) in enumerate(SETTINGS.items())
]


def randomise(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.06 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def logits(network):
    with torch.no_grad():
        return network(input_ids=IDS).logits


def write(setting, model, folder):
    """The adapter as PEFT saves it."""
    plain = {"r": 4, "lora_alpha": 12, "target_modules": targets(model), "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(**(plain | setting.make(model)))
        if config.task_type == "SEQ_CLS":
            model = t.AutoModelForSequenceClassification.from_config(model.config)
        network = randomise(get_peft_model(model, config))
        (setting.save or (lambda n, f: n.save_pretrained(f)))(network, folder)
    if setting.written:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | setting.written))


def by_peft(architecture, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(PeftModel.from_pretrained(base(architecture), folder).eval())


def check(name, architecture, folder):
    """What a cell promises."""
    setting = SETTINGS[name]
    write(setting, base(architecture), folder)
    if refused := setting.refused_on(architecture):
        with pytest.raises(UserError, match=re.escape(refused)) as caught:
            attach_slot(base(architecture), None, [load_adapter(folder).point], architecture)
        assert "\n" not in str(caught.value)
        return
    expected = by_peft(architecture, folder)
    size = float(expected.abs().max())
    assert float((expected - logits(base(architecture))).abs().max()) > 0.01 * size, "the adapter does nothing"
    point = load_adapter(folder).point
    model = attach_slot(base(architecture), None, [point], architecture)
    found = {}
    with model.merged(point) as network:
        found["merged"] = logits(network)
    with model.unmerged(point) as network:
        found["unmerged"] = logits(network)
    save_adapter(point, folder / "back", "base")
    found["written back"] = by_peft(architecture, folder / "back")
    for way, ours in found.items():
        error = float((ours - expected).abs().max()) / size
        assert error <= 1e-5, f"{way}: {error}"


@pytest.mark.parametrize(("name", "architecture"), PART, ids=lambda v: v)
def test_each_setting_on_one_architecture(name, architecture, tmp_path):
    check(name, architecture, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), CELLS, ids=lambda v: v)
def test_each_setting_on_every_architecture(name, architecture, tmp_path):
    check(name, architecture, tmp_path)


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_kinds_of_adapters_are_refused_by_name(kind, tmp_path):
    """Refused by what the file says, before anything is made of the tensors."""
    (tmp_path / "adapter_config.json").write_text(f'{{"peft_type": "{kind}", "task_type": "CAUSAL_LM"}}')
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=f"got one with peft_type {kind}, "):
        load_adapter(tmp_path)


def test_every_setting_of_peft_is_decided():
    """When PEFT adds a setting, someone has to say whether it changes the model."""
    lists = [
        adapter_config.READ,
        adapter_config.REFUSED_WHERE_TRUE,
        adapter_config.REFUSED_WHERE_GIVEN,
        adapter_config.WITHOUT_EFFECT,
    ]
    times = Counter(name for names in lists for name in names)
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= set(times)
    assert set(times.values()) == {1}


def rows():
    """The table of the page: a setting, on how many architectures it is equal or refused, and what the line names."""
    lines = []
    for name, setting in SETTINGS.items():
        outcomes = [setting.refused_on(a) is None for a in ARCHITECTURES if setting.on(a)]
        equal, refused = outcomes.count(True), outcomes.count(False)
        lines.append(f"| {name} | {equal or '–'} | {refused or '–'} | {setting.refused or ''} |")
    return lines


def test_the_page_has_the_counts_of_the_matrix():
    page = PAGE.read_text(encoding="utf-8")
    equal = sum(SETTINGS[s].refused_on(a) is None for s, a in CELLS)
    assert "\n".join(rows()) in page
    for sentence in (
        f"{len(CELLS)} cells, {equal} equal and {len(CELLS) - equal} refused",
        f"{len(SETTINGS)} settings on {len(ARCHITECTURES)} architectures",
        f"The {len(OTHER_TYPES)} other kinds of adapters",
        ", ".join(ARCHITECTURES),
    ):
        assert sentence in page.replace("\n", " "), sentence
