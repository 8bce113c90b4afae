"""Models that have no position for a token: refused before anything is written, at exactly the length they fail at."""

import logging
from dataclasses import replace

import pytest
import torch
import transformers as t
from transformers import AutoModelForCausalLM

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models import positions
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import EncodedExample, collate
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.positions import positions_of
from mcanalysis.tasks.task import Example, Task, TaskData
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.dry_run import dry_run

MOST = 12
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZED = {**SMALL, "max_position_embeddings": MOST}
WIDE = {**SIZED, "intermediate_size": 32}
GPT = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": MOST}
DECODER = {"vocab_size": 40, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
DECODER |= {"max_position_embeddings": MOST, "is_decoder": True}
LOCAL = {"vocab_size": 40, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}
CONFIGS = {
    "gpt2": lambda: t.GPT2Config(**GPT),
    "gpt_neo": lambda: t.GPTNeoConfig(max_position_embeddings=MOST, **LOCAL),
    "opt": lambda: t.OPTConfig(ffn_dim=32, word_embed_proj_dim=16, **SIZED),
    "biogpt": lambda: t.BioGptConfig(**WIDE),
    "bigcode": lambda: t.GPTBigCodeConfig(**GPT),
    "openai": lambda: t.OpenAIGPTConfig(**GPT),
    "ctrl": lambda: t.CTRLConfig(dff=32, **GPT),
    "gptj": lambda: t.GPTJConfig(rotary_dim=4, **GPT),
    "codegen": lambda: t.CodeGenConfig(rotary_dim=4, **{**GPT, "n_head": 4}),
    "mpt": lambda: t.MptConfig(vocab_size=40, d_model=16, n_layers=1, n_heads=2, max_seq_len=MOST),
    "bart": lambda: t.BartConfig(**DECODER),
    "trocr": lambda: t.TrOCRConfig(**DECODER),
    "bert": lambda: t.BertConfig(is_decoder=True, **WIDE),
    "roberta": lambda: t.RobertaConfig(is_decoder=True, **WIDE),
    "xglm": lambda: t.XGLMConfig(
        vocab_size=40, d_model=16, num_layers=1, attention_heads=2, ffn_dim=32, max_position_embeddings=MOST
    ),
    "llama": lambda: t.LlamaConfig(**WIDE),
    "gpt_neox": lambda: t.GPTNeoXConfig(**WIDE),
    "falcon": lambda: t.FalconConfig(**SIZED),
    "gemma2": lambda: t.Gemma2Config(head_dim=8, num_key_value_heads=1, **WIDE),
    "bloom": lambda: t.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2),
    "mamba": lambda: t.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4),
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_positions_found_are_those_at_which_the_model_ends(architecture):
    """Against the model itself, at every length; on the meta device the same is found."""
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture]()).eval()

    def reads(length):
        try:
            with torch.no_grad():
                model(input_ids=torch.full((1, length), 7), use_cache=False)
        except (IndexError, RuntimeError):
            return False
        return True

    most = max(n for n in range(1, MOST + 4) if reads(n))
    found = positions_of(model)
    assert found.is_table == (most < MOST + 3)
    if found.is_table:
        assert found.number == most
    else:
        assert found.number == getattr(model.config.get_text_config(), "max_position_embeddings", None)
    with torch.device("meta"):
        assert positions_of(AutoModelForCausalLM.from_config(CONFIGS[architecture]())) == found


@pytest.fixture
def gpt2_folder(tiny_base, tokenizer, tmp_path):
    """A GPT-2 of 256 positions."""
    tiny_base("gpt2").save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def long_task(tokens, limit, splits=("train", "eval", "test"), name="zeta"):
    """A task whose longest prompt has about so many tokens in the splits named, and few in the others."""
    short, long = Example("apple river:", "green stone"), Example("river " * (tokens // 2), "green stone")
    data = {s: [short, long if s in splits else short] for s in ("train", "eval", "test")}
    return TaskData.of(Task(name, "en", "exact_match", limit), data)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
@pytest.mark.parametrize("limit", [2, 40])
def test_a_refusal_names_the_largest_length_that_fits(architecture, limit, tiny_base, tokenizer):
    """At that length the model answers as its own generate does to the last position; at one more it is refused."""
    model = LoraModel.attach(tiny_base(architecture), tokenizer, LoraSettings(2), 0, architecture)
    task = long_task(600, limit, ("test",))

    def answers(max_length):
        objective = make_objective(task, "test", tokenizer, max_length)
        return objective, Engine(model).evaluate(model.base_point(), [objective])[0].outputs

    answer = len(tokenizer("green stone")["input_ids"]) + 1
    fits = 256 - max(limit - 1 - answer, 0)
    for length in (fits + 1, 400):
        with pytest.raises(UserError, match=rf"256 tokens .* the test split of zeta; lower .*--max-length to {fits}\."):
            answers(length)
    objective, outputs = answers(fits)
    prompt = objective.encoded[1].prompt_ids
    assert len(prompt) + max(answer, limit - 1) == 256
    with torch.no_grad():
        ids = tiny_base(architecture).generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=limit)
    written = ids[0, len(prompt) :].tolist()
    written = written[: written.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in written else written
    assert outputs[1] == tokenizer.decode(written, skip_special_tokens=True)


def test_short_prompts_with_a_long_limit_are_not_to_be_cut(tiny_base, tokenizer):
    """Of few tokens in a prompt none need go: less is written, which is named first, and at that limit all fits."""
    model = LoraModel.attach(tiny_base("gpt2"), tokenizer, LoraSettings(2), 0, "gpt2")

    def measure(limit):
        objective = make_objective(long_task(20, limit, ("test",)), "test", tokenizer, 256)
        Engine(model).measure(model.base_point(), [objective])

    with pytest.raises(UserError, match="lower --max-new-tokens to") as error:
        measure(300)
    limit = int(str(error.value).split("--max-new-tokens to ")[1].strip(".").split(",")[0])
    measure(limit)
    with pytest.raises(UserError, match=f"lower --max-new-tokens to {limit}"):
        measure(limit + 1)


@pytest.mark.parametrize("split", ["train", "eval", "test", "general"])
@pytest.mark.parametrize("strategy", ["sequential", "progressive_prompts", "l2p"])
def test_a_run_that_will_not_fit_is_refused_before_anything_is_written(
    strategy, split, gpt2_folder, run_config, tmp_path
):
    """The two tasks' prompts of progressive_prompts, and those of l2p, take positions; the dry run says the same."""
    limit = 20
    tasks = [long_task(600, limit, (split,)), long_task(20, limit, name="alpha")]
    general = [long_task(600, limit, ("test",), "wiki")] if split == "general" else []
    config = replace(run_config(strategy), model=str(gpt2_folder))
    config = replace(config, training=replace(config.training, max_length=256, num_steps=1))
    prompts = {"sequential": 0, "progressive_prompts": 2 * 20, "l2p": 5 * 5}[strategy]
    if split == "train" and not prompts:
        config = replace(config, training=replace(config.training, max_length=300))
    with pytest.raises(
        UserError, match=r"256 tokens that the model has positions for.*lower .*--max-length to \d+\."
    ) as e:
        train(config, tmp_path / "run", device="cpu", tasks=tasks, general=general)
    assert not (tmp_path / "run").exists()
    assert (f"{prompts} trained vectors" in str(e.value)) == bool(prompts)
    with pytest.raises(UserError) as told:
        dry_run(config, tasks=tasks, general=general)
    assert str(told.value) == str(e.value)


def test_a_run_at_the_length_named_trains_and_answers(gpt2_folder, run_config, tmp_path):
    tasks = [long_task(600, 20), long_task(600, 8, name="alpha")]
    config = replace(run_config("progressive_prompts"), model=str(gpt2_folder))
    config = replace(config, training=replace(config.training, max_length=256, num_steps=1))
    with pytest.raises(UserError) as refused:
        dry_run(config, tasks=tasks)
    length = int(str(refused.value).rstrip(".").rpartition(" ")[2])
    config = replace(config, training=replace(config.training, max_length=length))
    dry_run(config, tasks=tasks)
    assert train(config, tmp_path / "run", device="cpu", tasks=tasks)


def test_a_batch_that_is_too_long_is_one_line_wherever_it_is_read(tiny_base, tokenizer):
    model = LoraModel.attach(tiny_base("gpt2"), tokenizer, LoraSettings(2), 0, "gpt2")
    batch = collate([EncodedExample((5,) * 255, (6, 7))], 0)
    with pytest.raises(UserError, match="got an example of 257; lower --max-length to 256"):
        forward(model.network, batch)


def test_where_no_length_helps_the_refusal_says_so(tiny_base, tokenizer):
    model = LoraModel.attach(tiny_base("gpt2"), tokenizer, LoraSettings(2), 0, "gpt2")
    objective = make_objective(long_task(600, 300, ("test",)), "test", tokenizer)
    with pytest.raises(UserError, match="choose a model with more positions"):
        Engine(model).evaluate(model.base_point(), [objective])


def test_a_model_that_counts_from_elsewhere_is_refused():
    """RoBERTa's positions begin behind that of padding; those we give to padded rows would be others."""
    model = AutoModelForCausalLM.from_config(CONFIGS["roberta"]())
    with pytest.raises(UserError, match="RobertaForCausalLM, which counts them from 2"):
        positions.check_positions(model, [])


def test_a_rotary_model_goes_on_and_says_once_what_it_was_made_for(tiny_base, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(positions, "_warned", set())
    model = LoraModel.attach(tiny_base("gemma"), tokenizer, LoraSettings(2), 0, "gemma")
    objective = make_objective(long_task(600, 7, ("test",)), "test", tokenizer, 400)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Engine(model).evaluate(model.base_point(), [objective])
    said = [r.getMessage() for r in caplog.records if "256 tokens" in r.getMessage()]
    assert len(said) == 1
    assert (
        f"a prompt of {len(objective.encoded[1].prompt_ids)} tokens" in said[0] and "lower --max-length to" in said[0]
    )
