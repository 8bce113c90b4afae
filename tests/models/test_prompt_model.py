"""Prompts before the tokens: every row of a padded batch computes what it computes alone, on every architecture.

The oracle is the base called with `inputs_embeds` of one unpadded example, the prompts put before it by hand.
"""

import json

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from torch import nn

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.encoding import IGNORED, EncodedExample, collate
from mcanalysis.models.forward import forward
from mcanalysis.models.loading import load_base
from mcanalysis.models.positions import Texts, check_positions
from mcanalysis.models.prompt_model import PromptNetwork, vocabulary_vectors
from mcanalysis.models.prompt_pool import PoolModel
from mcanalysis.models.prompt_stack import StackModel
from mcanalysis.tasks.task import Task, TaskData
from mcanalysis.training.config import Execution

ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "opt", "qwen2", "gemma", "mistral")
KINDS = ("pool", "stack")


@pytest.fixture(scope="module")
def make_base(base_folder, tokenizer, tiny_base):
    def make(architecture, dtype="auto"):
        if architecture == "llama":
            return load_base(str(base_folder), dtype)[0]
        if architecture == "mistral":  # a window that reaches the prompts from some tokens and not from others
            config = transformers.MistralConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                sliding_window=12,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            with torch.random.fork_rng():
                torch.manual_seed(0)
                base = transformers.AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in base.parameters():
                    if parameter.dim() == 2:
                        parameter.mul_(5.0)
            return base.eval()
        return tiny_base(architecture)

    return make


@pytest.fixture(scope="module")
def attach(make_base, tokenizer):
    """attach("pool" or "stack", architecture) -> a model whose prompts are random and as long as 6 or 3 + 2 · 3."""

    def make(kind, architecture="llama", dtype="auto"):
        base = make_base(architecture, dtype)
        if kind == "pool":
            model = PoolModel.attach(
                base, tokenizer, architecture, pool_size=7, prompt_length=2, num_selected=3, seed=0
            )
        else:
            model = StackModel.attach(base, tokenizer, architecture, prompt_length=3, bottleneck=8, seed=0)
            model.draw_starts(3)
            for index in (1, 2):
                randomise(model.prompts.up, index)
                model.grow(index)
            randomise(model.prompts.up, 3)
        return model

    return make


def randomise(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def prefix_by_hand(model, example):
    """The vectors before an example (length, width), in NumPy."""
    if isinstance(model, StackModel):
        s = {k: v.detach().double().numpy() for k, v in model.prompts.state_dict().items()}
        hidden = np.maximum(s["prompt"] @ s["down.weight"].T + s["down.bias"], 0)
        return np.concatenate([s["prompt"] + hidden @ s["up.weight"].T + s["up.bias"], s["frozen"]])
    embed = model.base.get_input_embeddings()
    query = embed(torch.tensor(example.prompt_ids)).detach().double().numpy().mean(0)
    prompts, keys = (model.parameters[k].detach().double().numpy() for k in ("prompts", "keys"))
    cosines = keys @ query / np.linalg.norm(keys, axis=1) / np.linalg.norm(query)
    return np.concatenate([prompts[i] for i in np.argsort(-cosines)[: model.prompts.num_selected]])


def embedded_by_hand(model, example, ids):
    embeddings = model.base.get_input_embeddings()(torch.tensor([ids]))
    prefix = torch.tensor(prefix_by_hand(model, example)).to(embeddings.dtype)
    return torch.cat([prefix[None], embeddings], dim=1)


@torch.no_grad()
def alone_by_hand(model, example):
    """(nll, hidden states of the tokens per block, number of prompts) of one example."""
    inputs = embedded_by_hand(model, example, example.prompt_ids + example.answer_ids)
    output = model.base(inputs_embeds=inputs, output_hidden_states=True)
    log_p = output.logits[0].double().log_softmax(-1)
    number = inputs.shape[1] - len(example)
    first = number + len(example.prompt_ids) - 1
    nll = -sum(log_p[first + i, token] for i, token in enumerate(example.answer_ids))
    return float(nll), [h[0, number:] for h in output.hidden_states[1:]]


def query_mask(batch):
    return batch.mask() * (batch.labels == IGNORED)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_of_a_padded_batch_is_that_of_the_example_alone(kind, architecture, attach, encode_examples):
    model, examples = attach(kind, architecture), encode_examples(7)
    batch = collate(examples, padding=7)
    assert batch.attention_mask is not None
    with torch.no_grad():
        result = forward(model.network, batch, hidden_states=True, extra={"query_mask": query_mask(batch)})
    for row, example in enumerate(examples):
        nll, states = alone_by_hand(model, example)
        assert float(result.nll[row]) == pytest.approx(nll, rel=1e-4, abs=1e-4)
        for got, expected in zip(result.hidden_states, states, strict=True):
            assert got.shape[1] == batch.input_ids.shape[1]
            torch.testing.assert_close(got[row, -len(example) :], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_padding_need_no_mask(kind, attach, encode_examples):
    model = attach(kind, "gpt2")
    examples = [e for e in encode_examples(40) if len(e) == len(encode_examples(40)[0])]
    batch = collate(examples, padding=7)
    assert batch.attention_mask is None and len(examples) > 1
    with torch.no_grad():
        nll = forward(model.network, batch, extra={"query_mask": query_mask(batch)}).nll
    assert nll.tolist() == pytest.approx([alone_by_hand(model, e)[0] for e in examples], rel=1e-4)


@pytest.fixture(scope="module")
def objective(make_examples, tokenizer):
    data = TaskData.of(Task("zeta", "en", "exact_match", 5), {"test": make_examples(8, seed=4)})
    return make_objective(data, "test", tokenizer, 128)


def generated_by_hand(model, example, number):
    inputs = embedded_by_hand(model, example, example.prompt_ids)
    ids = []
    for _ in range(number):
        output = model.base(inputs_embeds=inputs)
        token = int(output.logits[0, -1].argmax())
        if token == model.tokenizer.eos_token_id:
            break
        ids.append(token)
        following = model.base.get_input_embeddings()(torch.tensor([[token]]))
        inputs = torch.cat([inputs, following], dim=1)
    return model.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("token_budget", [1, 60, 4096])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "mistral"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_measures_and_writes_what_one_example_alone_gives(
    engine_of, kind, architecture, token_budget, attach, objective
):
    model = attach(kind, architecture)
    evaluation = engine_of(model, [objective], token_budget).evaluate(model.point(), [objective])[0]
    with torch.no_grad():
        expected = [alone_by_hand(model, e)[0] for e in objective.encoded]
        outputs = [generated_by_hand(model, e, 5) for e in objective.encoded]
    np.testing.assert_allclose(evaluation.measurement.nll, expected, rtol=1e-4, atol=1e-4)
    assert list(evaluation.outputs) == outputs


@pytest.mark.parametrize("kind", KINDS)
def test_rows_whose_answer_is_known_leave_the_cache_and_the_others_go_on(kind, attach, objective, tokenizer):
    """Half of the references are what greedy decoding writes, so that part of the batch is decoded from its cache."""
    from dataclasses import replace

    model = attach(kind)
    mixed = []
    for i, e in enumerate(objective.encoded):
        ids = tuple(tokenizer(generated_by_hand(model, e, 5))["input_ids"]) if i % 2 else e.answer_ids
        mixed.append(EncodedExample(e.prompt_ids, (*ids, tokenizer.eos_token_id) if i % 2 else ids))
    evaluation = Engine(model).evaluate(model.point(), [replace(objective, encoded=tuple(mixed))])[0]
    assert list(evaluation.outputs) == [generated_by_hand(model, e, 5) for e in objective.encoded]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_empty_point_is_the_base(kind, architecture, attach, make_base, objective, alone):
    model, plain = attach(kind, architecture), make_base(architecture)
    assert model.base_point() == {}
    evaluation = Engine(model).evaluate(model.base_point(), [objective])[0]
    with torch.no_grad():
        expected = [float(alone(plain, e)[0]) for e in objective.encoded]
    np.testing.assert_allclose(evaluation.measurement.nll, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_in_place_goes_away_again(kind, attach):
    model = attach(kind)
    trained, other = model.point(), {k: v + 1 for k, v in model.point().items()}
    with pytest.raises(RuntimeError, match="on purpose"), model.in_place(other) as network:
        assert network.prompts is not model.prompts
        raise RuntimeError("on purpose")
    assert model.network.prompts is model.prompts
    assert all(torch.equal(v, trained[k]) for k, v in model.point().items())
    assert [k for k, p in model.network.named_parameters() if p.requires_grad] == [
        f"prompts.{k}" for k in model.parameters
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_leaves_and_nothing_of_the_base_trains(kind, attach):
    model = attach(kind)
    trainable = [p for p in model.network.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in model.parameters.values()}
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in trainable)
    assert all(p.dtype == torch.float32 for p in attach(kind, dtype="bfloat16").parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_every_parameter_of_a_low_precision_base_too(kind, attach, encode_examples):
    model = attach(kind, dtype="bfloat16")
    batch = collate(encode_examples(6), padding=0)
    loss = forward(model.network, batch).nll.sum()
    if kind == "pool":
        loss = loss - model.prompts.similarity.sum()
    loss.backward()
    for name, gradient in model.gradient().items():
        assert gradient.dtype == torch.float32 and bool(gradient.abs().sum() > 0), name
    assert set(model.gradient()) == set(model.parameters)


def test_the_choice_depends_on_the_prompt_alone(attach, encode_examples):
    """Neither on the answer, nor on padding, nor on what else is in the batch."""
    model, examples = attach("pool"), encode_examples(12, seed=3)
    changed = [EncodedExample(e.prompt_ids, tuple(reversed(e.answer_ids)) * 2) for e in examples]
    chosen = []
    for group in (examples, changed, *([e] for e in examples)):
        batch = collate(group, padding=9)
        with torch.no_grad():
            forward(model.network, batch, extra={"query_mask": query_mask(batch)})
        chosen.append(model.prompts.similarity)
    assert len({tuple(np.round(row, 4)) for row in chosen[0].tolist()}) > 6
    torch.testing.assert_close(chosen[0], chosen[1])
    torch.testing.assert_close(chosen[0], torch.cat(chosen[2:]))


def test_the_stack_grows_in_front_and_what_is_frozen_stays(make_base, tokenizer):
    model = StackModel.attach(make_base("llama"), tokenizer, "x", prompt_length=3, bottleneck=8, seed=5)
    model.draw_starts(3)
    identities = {k: id(p) for k, p in model.parameters.items()}
    randomise(model.prompts, 1)
    first = model.point()["prompt_embeddings"]
    assert first.shape == (3, 32)
    model.grow(1)
    started = model.point()["prompt_embeddings"]
    assert torch.equal(started[3:], first)
    assert torch.equal(started[:3], vocabulary_vectors(model.base, tokenizer, 3, "stack/5/1"))  # the MLP starts at 0
    randomise(model.prompts, 2)
    second = model.point()["prompt_embeddings"]
    assert torch.equal(second[3:], first) and not torch.equal(second[:3], started[:3])
    model.grow(2)
    assert torch.equal(model.point()["prompt_embeddings"][3:], second)
    assert {k: id(p) for k, p in model.parameters.items()} == identities
    np.testing.assert_allclose(prefix_by_hand(model, None), model.point()["prompt_embeddings"].numpy(), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_the_start_and_the_global_state_is_left_alone(kind, make_base, tokenizer):
    def start(seed, noise):
        base = make_base("llama")
        torch.manual_seed(noise)
        if kind == "pool":
            model = PoolModel.attach(base, tokenizer, "x", pool_size=4, prompt_length=2, num_selected=2, seed=seed)
        else:
            model = StackModel.attach(base, tokenizer, "x", prompt_length=3, bottleneck=8, seed=seed)
        after = torch.rand(1)
        assert torch.equal(after, torch.rand(1, generator=torch.Generator().manual_seed(noise)))
        return model.raw()

    with torch.random.fork_rng():
        one, same, other = start(0, 1), start(0, 2), start(1, 1)
    assert all(torch.equal(v, same[k]) for k, v in one.items())
    moved = {k for k, v in one.items() if v.numel() and not torch.equal(v, other[k])}
    assert moved == ({"prompts", "keys"} if kind == "pool" else {"prompt", "down.weight", "down.bias"})


def test_prompts_start_at_tokens_that_are_not_special_and_keys_have_their_size(make_base, tokenizer):
    base = make_base("gemma")
    table = base.get_input_embeddings()(torch.arange(len(tokenizer))).detach()
    vectors = vocabulary_vectors(base, tokenizer, 400, "x")
    nearest = torch.cdist(vectors.double(), table.double()).min(1)
    assert float(nearest.values.max()) < 1e-4
    assert not set(nearest.indices.tolist()) & set(tokenizer.all_special_ids)
    model = PoolModel.attach(base, tokenizer, "x", pool_size=6, prompt_length=2, num_selected=1, seed=0)
    sizes = [float(p.detach().square().mean()) for p in model.parameters.values()]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_back_bit_for_bit(kind, attach, tmp_path):
    model = attach(kind)
    model.save(tmp_path / "prompts")
    assert {p.suffix for p in (tmp_path / "prompts").iterdir()} == {".json", ".safetensors"}
    point = attach(kind, "llama").read(tmp_path / "prompts")
    assert point.keys() == model.point().keys()
    assert all(torch.equal(v, point[k]) for k, v in model.point().items())
    other = {k: v * 2 for k, v in point.items()}
    model.save(tmp_path / "other", other)
    assert all(torch.equal(v, other[k]) for k, v in model.read(tmp_path / "other").items())


def test_raw_tensors_restore_a_stack_in_the_middle_of_a_task(attach, make_base, tokenizer):
    model = attach("stack")
    fresh = StackModel.attach(make_base("llama"), tokenizer, "x", prompt_length=3, bottleneck=8, seed=0)
    fresh.load_raw({k: v.clone() for k, v in model.raw().items()})
    assert torch.equal(fresh.point()["prompt_embeddings"], model.point()["prompt_embeddings"])
    assert all(torch.equal(v, model.raw()[k]) for k, v in fresh.raw().items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma"])
def test_peft_loads_a_stack_and_computes_the_same(architecture, attach, make_base, encode_examples, tmp_path):
    model = attach("stack", architecture)
    model.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "PROMPT_TUNING" and config["num_virtual_tokens"] == 9
    peft = PeftModel.from_pretrained(make_base(architecture), tmp_path).eval()
    for example in encode_examples(3):
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        with torch.no_grad():
            theirs = peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 9:]
            ours = model.network(ids, None, torch.arange(ids.shape[1])[None]).logits
        assert theirs.shape == ours.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_folder_with_something_else_is_refused(attach, make_base, tokenizer, tmp_path, make_model):
    pool, stack, lora = attach("pool"), attach("stack"), make_model()
    for name, model in (("pool", pool), ("stack", stack), ("lora", lora)):
        model.save(tmp_path / name)
    with pytest.raises(UserError, match=r"prompt_config\.json.*stack"):
        pool.read(tmp_path / "stack")
    with pytest.raises(UserError, match=r"prompt_embeddings.*got none"):
        stack.read(tmp_path / "lora")
    with pytest.raises(UserError, match="nowhere"):
        stack.read(tmp_path / "nowhere")
    fewer = PoolModel.attach(make_base("llama"), tokenizer, "x", pool_size=7, prompt_length=2, num_selected=2, seed=0)
    with pytest.raises(UserError, match=r"num_selected 2.*got 3"):
        fewer.read(tmp_path / "pool")
    smaller = PoolModel.attach(make_base("llama"), tokenizer, "x", pool_size=6, prompt_length=2, num_selected=3, seed=0)
    with pytest.raises(UserError, match=r"\(6, 2, 32\).*\(7, 2, 32\)"):
        smaller.read(tmp_path / "pool")
    with pytest.raises(PointMismatchError, match="any"), stack.in_place({"prompt_embeddings": torch.zeros(3, 5)}):
        pass


def test_a_base_that_takes_no_embeddings_is_refused(make_base, tokenizer):
    class Plain(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.inner = base

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, input_ids):
            return self.inner(input_ids)

    with pytest.raises(UserError, match="Plain"):
        StackModel.attach(Plain(make_base("llama")), tokenizer, "x", prompt_length=2, bottleneck=4, seed=0)


def test_more_prompts_than_the_base_has_positions_are_refused(attach, encode_examples):
    model, examples = attach("stack", "gpt2"), encode_examples(4)
    longest = max(len(e) for e in examples)
    texts = [Texts("the train split of zeta", examples)]
    check_positions(model.network, texts, 256 - longest)
    with pytest.raises(UserError, match=f"256 tokens .* {257 - longest} trained vectors.* to {longest - 1}"):
        check_positions(model.network, texts, 257 - longest)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_computed_again_give_the_same_prompts(kind, attach, encode_examples, tmp_path):
    from mcanalysis.strategies.sequential import Sequential
    from mcanalysis.strategies.strategy import StrategyConfig
    from mcanalysis.training.config import TrainingConfig
    from mcanalysis.training.task_trainer import TaskTrainer

    points = []
    for again in (False, True):
        model = attach(kind)
        config = TrainingConfig(num_steps=2, batch_size=4, warmup_ratio=0.0)
        strategy = Sequential(StrategyConfig(), 0)
        execution = Execution(gradient_checkpointing=again)
        trainer = TaskTrainer(
            model, strategy, encode_examples(8), "zeta", config, "0", str(tmp_path), execution=execution
        )
        before = model.point()
        trainer.train()
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.base.modules()) is again
        points.append(model.point())
        assert any(not torch.equal(v, before[k]) for k, v in points[-1].items())
    for name, value in points[0].items():
        torch.testing.assert_close(points[1][name], value, rtol=0, atol=1e-6)


def test_a_network_is_called_as_the_model_inside(attach, encode_examples):
    model = attach("stack")
    assert isinstance(model.network, PromptNetwork)
    assert model.network.get_base_model() is model.base
    batch = collate(encode_examples(4), padding=0)
    output = model.network(batch.input_ids, batch.attention_mask, batch.position_ids, logits_to_keep=2)
    assert output.logits.shape[:2] == (4, 2)
    full = model.network(batch.input_ids, batch.attention_mask, batch.position_ids)
    assert full.logits.shape[:2] == batch.input_ids.shape
    torch.testing.assert_close(full.logits[:, -2:], output.logits, rtol=1e-5, atol=1e-4)
