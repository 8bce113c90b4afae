"""Not Llama only: every architecture trains, saves, computes its loss and is evaluated as plain transformers would."""

from dataclasses import replace

import pytest
import torch
import transformers as t
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from mcanalysis.errors import UserError
from mcanalysis.evaluation.batch_plan import common_prefix
from mcanalysis.evaluation.engine import Engine, EngineSettings
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.target_modules import find_target_modules
from mcanalysis.strategies import make_strategy
from mcanalysis.tasks.task import Task, TaskData

ARCHITECTURES = (
    *("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox"),
    *("opt", "gemma", "gemma2", "gemma3", "phi3"),
)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture
def attach(tiny_base, tokenizer):
    return lambda name, **settings: LoraModel.attach(
        tiny_base(name), tokenizer, LoraSettings(4, 12.0, **settings), 0, name
    )


def nll_of_full_logits(network, batch):
    """All logits, then the cross entropy at every label: what `forward` computes without computing all logits."""
    output = network(input_ids=batch.input_ids, attention_mask=batch.mask(), position_ids=batch.position_ids)
    targets = batch.labels[:, 1:]
    nll = cross_entropy(output.logits[:, :-1].transpose(1, 2).float(), targets, reduction="none")
    return nll.sum(1)  # 0 where the label is -100


def switch_off_dropout(network):
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@every_architecture
def test_merged_evaluation_equals_pefts_own_unmerged_one(
    architecture, attach, encode_examples, random_point, tiny_base, add_by_hand
):
    model = attach(architecture)
    batch = collate(encode_examples(5), padding=0)
    point = random_point(model)
    with torch.no_grad():
        before = model.forward(batch).nll
        model.load_point(point)
        unmerged = model.forward(batch).nll
        with model.merged(point) as network:
            merged = forward(network, batch).nll
        functional = model.forward_at(point, batch).nll
        by_hand = forward(add_by_hand(tiny_base(architecture), point), batch).nll
    assert float((before - unmerged).abs().max()) > 0.01
    for other in (merged, functional, by_hand):
        torch.testing.assert_close(other, unmerged, rtol=1e-5, atol=1e-5)


@every_architecture
@pytest.mark.parametrize("name", ["er", pytest.param("ilora", marks=pytest.mark.slow)])
def test_training_with_replay_moves_the_adapter_only_and_plain_peft_reads_it(
    name, architecture, attach, encode_examples, train_task, tiny_base, tmp_path
):
    model = attach(architecture)
    strategy = make_strategy(name, seed=0, replay_from_first_step=True)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, [])
    start = model.point()
    frozen = {k: v.clone() for k, v in model.peft.state_dict().items() if ".lora_" not in k}
    trainer = train_task(model, strategy, encode_examples(8), num_steps=3, learning_rate=2e-2)
    assert len(trainer.losses) == 3
    moved = model.point()
    assert all(not torch.equal(start[k], moved[k]) for k in moved)
    assert all(torch.equal(v, frozen[k]) for k, v in model.peft.state_dict().items() if k in frozen)

    ids = torch.tensor([encode_examples(1, seed=5)[0].prompt_ids])
    points = {"fast": moved, "slow": getattr(strategy, "slow", None)}
    for learner in strategy.learners:
        strategy.save_learner(model, learner, tmp_path / learner)
        plain = PeftModel.from_pretrained(tiny_base(architecture), tmp_path / learner).eval()
        with torch.no_grad(), model.merged(points[learner]) as network:
            ours = network.eval()(input_ids=ids).logits
            theirs = plain(input_ids=ids).logits
            untrained = tiny_base(architecture)(input_ids=ids).logits
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)
        assert float((theirs - untrained).abs().max()) > 0.01


@every_architecture
def test_padded_rows_have_the_nll_and_hidden_states_of_unpadded_ones(
    architecture, attach, encode_examples, random_point, alone
):
    model, examples = attach(architecture), encode_examples(6)
    model.load_point(random_point(model))
    batch = collate(examples, padding=0)
    assert len({len(e) for e in examples}) > 3
    with torch.no_grad():
        result = forward(model.peft.eval(), batch, hidden_states=True)
        for row, example in enumerate(examples):
            nll, states = alone(model.peft, example)
            assert float(result.nll[row]) == pytest.approx(float(nll), rel=1e-5, abs=1e-5)
            assert len(result.hidden_states) == len(states) == 2
            for ours, theirs in zip(result.hidden_states, states, strict=True):
                torch.testing.assert_close(ours[row, -len(example) :], theirs, rtol=1e-4, atol=5e-5)


@every_architecture
@pytest.mark.parametrize("way", ["peft", "functional call", "gradient checkpointing", "merged"])
def test_logits_at_the_labels_only_give_the_loss_and_gradient_of_all_logits(
    way, architecture, attach, encode_examples, random_point
):
    model = attach(architecture)
    point = random_point(model)
    model.load_point(point)
    batch = collate(encode_examples(5, seed=2), padding=0)
    expected = nll_of_full_logits(model.peft.eval(), batch)
    parameters = list(model.parameters.values())
    gradient = torch.autograd.grad(expected.sum(), parameters)
    if way == "merged":
        with torch.no_grad(), model.merged(point) as network:
            result = forward(network, batch)
    elif way == "functional call":
        leaves = {k: v.requires_grad_() for k, v in point.items()}
        result = model.forward_at(leaves, batch)
        scaling = [model.scaling[k.split(".lora_")[0]] if ".lora_B." in k else 1.0 for k in leaves]
        parameters = list(leaves.values())
        gradient = [g / s for g, s in zip(gradient, scaling, strict=True)]
    else:
        if way == "gradient checkpointing":
            switch_off_dropout(model.peft)
            model.peft.train()
            name = "activation" if hasattr(model.base, "activation_checkpointing_enable") else "gradient"
            getattr(model.base, f"{name}_checkpointing_enable")()
        result = model.forward(batch)
    torch.testing.assert_close(result.nll, expected, rtol=1e-5, atol=1e-5)
    assert result.logits.shape == (int(result.num_targets.sum()), len(model.tokenizer))
    if way != "merged":
        for ours, theirs in zip(torch.autograd.grad(result.nll.sum(), parameters), gradient, strict=True):
            assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm())
            assert float(theirs.norm()) > 0


def test_the_soft_cap_of_the_tiny_gemma_2_does_bend_its_logits(tiny_base, encode_examples):
    model = tiny_base("gemma2")
    with torch.no_grad():
        largest = model(input_ids=torch.tensor([encode_examples(1)[0].prompt_ids])).logits.abs().max()
    assert 1.5 < float(largest) <= 3.0


@every_architecture
@pytest.mark.parametrize("token_budget", [1, 4096])
def test_outputs_and_nll_are_those_of_one_unpadded_example_and_plain_generate(
    engine_of, token_budget, architecture, attach, tokenizer, make_examples, random_point, add_by_hand, tiny_base, alone
):
    """Sliding windows are shorter than most prompts, and some prompts are shorter than the window."""
    model = attach(architecture)
    point = random_point(model)
    plain = add_by_hand(tiny_base(architecture), point)
    data = TaskData.of(Task("zeta", "en", "exact_match", 7), {"test": make_examples(8, seed=4)})
    objective = make_objective(data, "test", tokenizer, 128)
    lengths = [len(e.prompt_ids) for e in objective.encoded]
    assert min(lengths) < 8 < max(lengths)
    evaluation = engine_of(model, [objective], token_budget).evaluate(point, [objective])[0]
    greedy = {"do_sample": False, "max_new_tokens": 7}
    greedy = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **greedy)
    for output, nll, encoded in zip(evaluation.outputs, evaluation.measurement.nll, objective.encoded, strict=True):
        ids = torch.tensor([encoded.prompt_ids])
        with torch.no_grad():
            written = plain.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
            expected = float(alone(plain, encoded)[0])
        assert output == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        assert nll == pytest.approx(expected, rel=1e-5, abs=1e-5)


WAYS = {
    "shared prefix": {"prefix": "shared"},
    "shared prefix, unmerged": {"prefix": "shared", "adapter": "unmerged"},
    "whole, unmerged": {"prefix": "whole", "adapter": "unmerged"},
    "small batches": {"prefix": "shared", "token_budget": 70},
}


@every_architecture
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_evaluating_gives_the_nll_of_one_unpadded_example_and_the_same_outputs(
    way, architecture, attach, tokenizer, make_examples, random_point, add_by_hand, tiny_base, alone
):
    """Prefixes of two tasks, one longer and one shorter than the sliding windows of those that have them."""
    model = attach(architecture)
    point = random_point(model)
    plain = add_by_hand(tiny_base(architecture), point)
    objectives = []
    for name, start in (("zeta", "the number of the odd one about the river and the stone: "), ("alpha", "odd one: ")):
        examples = [replace(e, prompt=start + e.prompt) for e in make_examples(6, seed=len(name))]
        data = TaskData.of(Task(name, "en", "exact_match", 4), {"test": examples})
        objectives.append(make_objective(data, "test", tokenizer, 128))
    lengths = sorted(len(common_prefix(o.encoded)) for o in objectives)
    assert 3 <= lengths[0] < 8 < lengths[1]
    engine = Engine(model, EngineSettings(**WAYS[way]))
    shared = engine.choices(objectives)["shared_prefix_tokens"].values()
    assert all(shared) if "shared" in WAYS[way].get("prefix", "") else not any(shared)
    evaluations, losses = engine.evaluate(point, objectives), engine.losses(point, objectives)
    plainly = Engine(model, EngineSettings(prefix="whole")).evaluate(point, objectives)
    for objective, evaluation, loss, other in zip(objectives, evaluations, losses, plainly, strict=True):
        with torch.no_grad():
            expected = [float(alone(plain, e)[0]) for e in objective.encoded]
        assert evaluation.measurement.nll == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert loss.nll == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert evaluation.outputs == other.outputs


SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OTHERS = {
    "phi": lambda: t.PhiConfig(intermediate_size=32, **SMALL),
    "falcon": lambda: t.FalconConfig(**SMALL),
    "bloom": lambda: t.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2),
    "gptj": lambda: t.GPTJConfig(vocab_size=40, n_embd=16, n_layer=1, n_head=2, rotary_dim=4),
    "codegen": lambda: t.CodeGenConfig(vocab_size=40, n_embd=16, n_layer=1, n_head=4, rotary_dim=4),
    "mpt": lambda: t.MptConfig(vocab_size=40, d_model=16, n_layers=1, n_heads=2),
    "gemma3 with eyes": lambda: t.Gemma3Config(
        text_config={"head_dim": 8, "num_key_value_heads": 1, "intermediate_size": 32, **SMALL},
        vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "mamba": lambda: t.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4),
}
QKV = ("q_proj", "k_proj", "v_proj")
DEFAULTS = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"], (*QKV, "o_proj")),
    "gemma3 with eyes": (*QKV, "o_proj"),
    **dict.fromkeys(["opt", "gptj"], (*QKV, "out_proj")),
    **dict.fromkeys(["gpt_neox", "falcon", "bloom"], ("query_key_value", "dense")),
    "gpt2": ("c_attn", "c_proj"),
    "phi": (*QKV, "dense"),
    "phi3": ("qkv_proj", "o_proj"),
    "codegen": ("qkv_proj", "out_proj"),
    "mpt": ("Wqkv", "out_proj"),
}


@pytest.fixture
def some_base(tiny_base):
    def make(name):
        return t.AutoModelForCausalLM.from_config(OTHERS[name]()) if name in OTHERS else tiny_base(name)

    return make


def leaves(names):
    return {name.rsplit(".", 1)[-1] for name in names}


@pytest.mark.parametrize("architecture", DEFAULTS)
def test_the_attention_projections_are_adapted_by_default_in_every_layer(architecture, some_base):
    model = some_base(architecture)
    names = find_target_modules(model)
    assert leaves(names) == set(DEFAULTS[architecture])
    layers = model.config.get_text_config().num_hidden_layers
    assert len(names) == len(set(names)) == layers * len(DEFAULTS[architecture])
    assert not any("mlp" in n or "vision" in n or "embed" in n or "head" in n.rsplit(".", 1)[-1] for n in names)


@pytest.mark.parametrize("architecture", DEFAULTS)
@pytest.mark.parametrize("kind", [tuple, list])
def test_all_linear_leaves_out_embeddings_and_output_layer_only(kind, architecture, some_base):
    model = some_base(architecture)
    names = find_target_modules(model, kind(["all-linear"]))
    assert set(find_target_modules(model)) < set(names)
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"}
    linear = {n for n in linear if "vision" not in n and "multi_modal" not in n}
    assert linear - set(names) == {n for n, m in model.named_modules() if m is model.get_output_embeddings()}
    assert set(names) <= linear


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "gemma2", "phi3"])
def test_an_adapter_on_all_linear_layers_merges_as_peft_computes(architecture, attach, encode_examples, random_point):
    model = attach(architecture, target_modules=("all-linear",))
    point = random_point(model, scale=0.05)
    model.load_point(point)
    batch = collate(encode_examples(4), padding=0)
    with torch.no_grad():
        expected = model.forward(batch).nll
        with model.merged(point) as network:
            torch.testing.assert_close(forward(network, batch).nll, expected, rtol=1e-4, atol=1e-4)


def test_targets_are_the_modules_of_these_names(tiny_base):
    names = find_target_modules(tiny_base("llama"), ("q_proj", "1.mlp.up_proj"))
    assert names == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert leaves(find_target_modules(tiny_base("gpt2"), ("mlp.c_proj",))) == {"c_proj"}
    assert all(".mlp." in n for n in find_target_modules(tiny_base("gpt2"), ("mlp.c_proj",)))


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        ("llama", ("q_proj", "c_attn")),
        ("gpt2", ("q_proj",)),
        ("llama", ("proj",)),  # part of a name
        ("llama", ("lm_head",)),  # tied to the embeddings
        ("llama", ("embed_tokens",)),
        ("llama", ("self_attn",)),  # no layer of its own
        ("llama", ("all-linear", "q_proj")),
        ("mamba", None),
    ],
)
def test_targets_that_are_not_there_are_refused_naming_those_that_are(architecture, wanted, some_base):
    known = "in_proj" if architecture == "mamba" else "c_attn" if architecture == "gpt2" else "down_proj"
    with pytest.raises(UserError, match=rf"{wanted[-1] if wanted else 'attention projections'}.*{known}.*target-mod"):
        find_target_modules(some_base(architecture), wanted)
