"""Tokenizers of all habits: without pad token, adding start or end tokens of their own, padding on either side."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine, EngineSettings
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import encode, encode_all, pad_id
from mcanalysis.models.loading import load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.strategies import make_strategy
from mcanalysis.tasks.task import Example, Task, TaskData

END, START = "<|end|>", "<|start|>"


@pytest.fixture
def base_with(base_folder, tmp_path):
    """base_with(change) -> a folder with the tiny base and a changed tokenizer; embeddings to match if `resize`."""

    def make(change, resize=True):
        tokenizer = AutoTokenizer.from_pretrained(base_folder)
        change(tokenizer)
        model = AutoModelForCausalLM.from_pretrained(base_folder)
        if resize and len(tokenizer) > model.config.vocab_size:
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        folder = tmp_path / "changed"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def adds(template):
    """Let a tokenizer put special tokens about every text, as Llama's (start) or T5's (end) do."""

    def change(tokenizer):
        if START in template:
            tokenizer.add_special_tokens({"bos_token": START})
        used = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (START, END) if token in template]
        tokenizer._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=used)

    return change


def has(**settings):
    return lambda tokenizer: [setattr(tokenizer, name, value) for name, value in settings.items()]


def cuts_and_pads(tokenizer):
    tokenizer._tokenizer.enable_truncation(3)
    tokenizer._tokenizer.enable_padding(length=50)


def trained(folder, examples, train_task):
    """Losses and scores of a little training with replay on a base of its own."""
    base, tokenizer = load_base(folder)
    model = LoraModel.attach(base, tokenizer, LoraSettings(4), 0, "base")
    strategy = make_strategy("er", 0, replay_from_first_step=True)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, [])
    encoded, _ = encode_all(examples, tokenizer, 128)
    losses = train_task(model, strategy, encoded, num_steps=4, learning_rate=1e-2).losses
    objective = make_objective(TaskData.of(Task("zeta", "en", "exact_match", 6), {"test": examples}), "test", tokenizer)
    evaluation = Engine(model, EngineSettings(200)).evaluate(model.point(), [objective])[0]
    return encoded, losses, evaluation


HARMLESS = {
    "no pad token": has(pad_token=None),
    "pad is end": has(pad_token=END),
    "pads right": has(padding_side="right"),
    "pads left": has(padding_side="left"),
    "truncates left": has(truncation_side="left", model_max_length=4),
    "truncates right": has(truncation_side="right", model_max_length=4),
    "cuts and pads by itself": cuts_and_pads,
}


@pytest.mark.parametrize(
    "habit", [h if h in ("no pad token", "pads left") else pytest.param(h, marks=pytest.mark.slow) for h in HARMLESS]
)
def test_pad_token_sides_and_limits_change_no_number(habit, base_with, base_folder, make_examples, train_task):
    examples = make_examples(8)
    encoded, losses, evaluation = trained(str(base_folder), examples, train_task)
    changed = trained(base_with(HARMLESS[habit]), examples, train_task)
    assert changed[0] == encoded
    assert changed[1] == pytest.approx(losses, rel=1e-6)
    assert changed[2].outputs == evaluation.outputs
    assert changed[2].measurement.nll == pytest.approx(evaluation.measurement.nll, rel=1e-5, abs=1e-5)


def test_without_a_pad_token_the_end_token_pads(base_with):
    _, tokenizer = load_base(base_with(has(pad_token=None)))
    assert tokenizer.pad_token_id is None
    assert pad_id(tokenizer) == tokenizer.eos_token_id


def test_with_pad_equal_to_end_the_end_of_an_answer_is_still_learned(base_with, make_examples):
    from mcanalysis.models.encoding import collate

    _, tokenizer = load_base(base_with(has(pad_token=END)))
    encoded, _ = encode_all(make_examples(5), tokenizer, 128)
    batch = collate(encoded, pad_id(tokenizer))
    assert (batch.labels == tokenizer.eos_token_id).sum(1).tolist() == [1] * 5
    assert batch.mask().sum(1).tolist() == [len(e) for e in encoded]
    assert bool((batch.input_ids[batch.mask() == 0] == tokenizer.eos_token_id).all())


TEMPLATES = {
    "start": (f"{START} $A", 1),
    "end": (f"$A {END}", 0),
    "start and end": (f"{START} $A {END}", 1),
    "end at the start": (f"{END} $A", 1),
    "end at both ends": (f"{END} $A {END}", 1),
}


@pytest.mark.parametrize("habit", TEMPLATES)
def test_special_tokens_of_the_tokenizers_own_stand_before_prompts_only(habit, base_with, tokenizer):
    template, in_front = TEMPLATES[habit]
    _, changed = load_base(base_with(adds(template)))
    example = Example("apple river stone:", "seven green")
    (plain, _), (encoded, _) = encode(example, tokenizer, 64), encode(example, changed, 64)
    assert len(changed("apple")["input_ids"]) == len(tokenizer("apple")["input_ids"]) + len(template.split()) - 1
    assert encoded.prompt_ids == tuple(changed("")["input_ids"][:in_front]) + plain.prompt_ids
    assert encoded.answer_ids == plain.answer_ids
    assert encoded.answer_ids.count(changed.eos_token_id) == 1
    short, cut = encode(example, changed, len(encoded) - 2)
    assert cut
    assert short.prompt_ids[:in_front] == encoded.prompt_ids[:in_front]  # cutting spares the start token


@pytest.mark.parametrize(
    "habit", [pytest.param(h, marks=pytest.mark.slow) if h in ("start", "end") else h for h in TEMPLATES]
)
def test_tokenizers_that_add_tokens_train_and_answer_as_plain_generate(habit, base_with, make_examples, train_task):
    folder = base_with(adds(TEMPLATES[habit][0]))
    examples = make_examples(6)
    _, losses, _ = trained(folder, examples, train_task)
    assert losses[-1] < losses[0]
    base, tokenizer = load_base(folder)
    model = LoraModel.attach(base, tokenizer, LoraSettings(4), 0, "base")
    objective = make_objective(TaskData.of(Task("zeta", "en", "exact_match", 6), {"test": examples}), "test", tokenizer)
    evaluation = Engine(model).evaluate(model.base_point(), [objective])[0]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for example, output in zip(examples, evaluation.outputs, strict=True):
        ids = tokenizer(example.prompt, return_tensors="pt")["input_ids"]
        if ids[0, -1] == tokenizer.eos_token_id:
            ids = ids[:, :-1]  # nothing is written behind the end
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=6, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        with torch.no_grad():
            written = plain.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        assert output == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_tokenizer_without_end_token_is_refused(base_with):
    with pytest.raises(UserError, match=r"end token.*eos_token in its tokenizer_config"):
        load_base(base_with(has(eos_token=None)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.add_tokens(["<task-1>", "<task-2>"]), r"2 more, the first is '<task-1>' with id 300"),
        (lambda t: t.add_special_tokens({"pad_token": "[PAD]"}), r"1 more, the first is '\[PAD\]'"),
        (lambda t: t.add_special_tokens({"eos_token": "</s>"}), r"1 more, the first is '</s>'"),
        (adds(f"{START} $A"), r"1 more, the first is '<\|start\|>'"),
    ],
    ids=["words", "pad", "end", "start"],
)
def test_tokens_without_an_embedding_are_refused(change, named, base_with):
    with pytest.raises(UserError, match=rf"300 tokens.*changed.*{named}.*resize"):
        load_base(base_with(change, resize=False))


def test_a_vocabulary_larger_than_the_embeddings_is_refused(base_with, tokenizer):
    from mcanalysis.pretraining.base_model import train_tokenizer

    folder = base_with(lambda t: None)
    words = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst"]
    larger = train_tokenizer([" ".join(words)] * 3, vocab_size=310)
    assert len(larger) > len(tokenizer)
    larger.save_pretrained(folder)
    with pytest.raises(UserError, match=rf"{len(tokenizer)} tokens.*got {len(larger) - len(tokenizer)} more"):
        load_base(folder)


def test_a_special_token_that_nothing_uses_may_lack_an_embedding(base_with):
    """As the image token of Gemma 3's text models does."""
    folder = base_with(lambda t: t.add_special_tokens({"additional_special_tokens": ["<image>"]}), resize=False)
    model, tokenizer = load_base(folder)
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings + 1
