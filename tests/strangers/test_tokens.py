"""Prompts and answers that bring special tokens as text, tokenizers that add them, models that stop at several."""

import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import encode
from mcanalysis.models.loading import load_base, load_tokenizer
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.studies.benchmark import bag_of_words_score
from mcanalysis.tasks.task import Example, Task, TaskData

START, END, TURN = "<|start|>", "<|end|>", "<|turn|>"
WRITTEN_ENDS = ["{}<|end|>", "{}<|end|>\n", "{}<|end|> ", "{}<|end|><|end|>", "{}<|end|>\n<|end|>\n"]


def data_of(pairs, score="exact_match", limit=3, **splits):
    return TaskData.of(Task("zeta", "en", score, limit), {"test": [Example(*p) for p in pairs], **splits})


@pytest.fixture
def changed(base_folder, tmp_path):
    """changed(change) -> the tiny base with another tokenizer; `untied`: of random weights, which repeat no token."""

    def make(change=lambda tokenizer: None, untied=False):
        folder = tmp_path / "changed"
        tokenizer = AutoTokenizer.from_pretrained(base_folder)
        change(tokenizer)
        tokenizer.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(base_folder)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if untied:
                model.config.tie_word_embeddings = False
                model = AutoModelForCausalLM.from_config(model.config)
                model.lm_head.weight.data.mul_(20)
                model.model.embed_tokens.weight.data.mul_(20)
            if len(tokenizer) > model.config.vocab_size:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(folder)
        return folder

    return make


def state_ends(folder, config=None, generation=None):
    """Write other end tokens into a model's files; without any for generation its file is removed."""
    for name, ends in (("config.json", config), ("generation_config.json", generation)):
        file = folder / name
        if ends is not None:
            file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": ends}))
        elif name != "config.json":
            file.unlink()


def attached(folder):
    base, tokenizer = load_base(str(folder))
    return LoraModel.attach(base, tokenizer, LoraSettings(2), 0, "base")


def generated(folder, tokenizer, prompt, limit):
    """The ids that transformers' own generate writes, stopping where the model's own configuration says."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model.generate(ids, do_sample=False, max_new_tokens=limit)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("written", WRITTEN_ENDS)
def test_an_answer_that_brings_its_end_token_is_the_plain_answer(written, base_folder, tokenizer, make_model, alone):
    """The same tokens, hence the same training; the loss transformers has; and a score of 1 for what is generated."""
    prompts = ["apple river:", "north stone:", "seven:"]
    wanted = [tokenizer.decode(generated(base_folder, tokenizer, p, 3)) for p in prompts]
    plain = make_objective(data_of(zip(prompts, wanted, strict=True)), "test", tokenizer)
    objective = make_objective(
        data_of((p, written.format(w)) for p, w in zip(prompts, wanted, strict=True)), "test", tokenizer
    )
    assert objective.encoded == plain.encoded and objective.settings_key == plain.settings_key
    model = make_model()
    result = Engine(model).evaluate(model.base_point(), [objective])[0]
    assert result.measurement.score == 1.0
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    for nll, prompt, answer in zip(result.measurement.nll, prompts, wanted, strict=True):
        ids = [tokenizer(text)["input_ids"] for text in (prompt, answer)]
        with torch.no_grad():
            log_p = base(torch.tensor([ids[0] + ids[1] + [tokenizer.eos_token_id]])).logits[0].double().log_softmax(-1)
        expected = -sum(float(log_p[len(ids[0]) - 1 + i, t]) for i, t in enumerate([*ids[1], tokenizer.eos_token_id]))
        assert nll == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_spaces_of_an_answer_without_an_end_token_and_ends_within_it_are_kept(tokenizer):
    for answer in ("green ", "green\n", "quiet<|end|>paper", "<|end|>paper "):
        expected = (*tokenizer(answer)["input_ids"], tokenizer.eos_token_id)
        assert encode(Example("apple:", answer), tokenizer, 64)[0].answer_ids == expected
        assert make_objective(data_of([("apple:", answer)]), "test", tokenizer).examples[0].answer == answer


def test_text_that_the_tokenizer_does_not_read_as_its_end_token_is_text(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder, split_special_tokens=True)
    assert tokenizer.eos_token_id not in tokenizer(f"green{END}")["input_ids"]
    assert encode(Example("apple:", f"green{END}"), tokenizer, 64)[0].answer_ids == (
        *tokenizer(f"green{END}")["input_ids"],
        tokenizer.eos_token_id,
    )


def test_baselines_see_no_end_token_in_answers(tokenizer):
    train = {"train": [Example("apple river:", f"green{END}\n"), Example("north stone:", "quiet")]}
    pairs = [("apple river:", "green"), ("north stone:", f"quiet{END}")]
    assert bag_of_words_score(data_of(pairs, "rouge_l", **train), tokenizer) == 1.0


STATED = {
    "a list": {"generation": [1, "X"]},
    "the other alone": {"generation": "X"},
    "a list of the configuration": {"config": [1, "X"]},
    "the end token twice": {"generation": [1, 1]},
}


@pytest.mark.parametrize("stated", STATED)
def test_answers_end_where_plain_generate_ends(stated, changed, tokenizer):
    """X: a token that the model writes, but not first, so that without it an output would go on."""
    prompts = ["apple river:", "north stone:", "seven:", "green paper silver:"]
    folder = changed(untied=True)
    without = [generated(folder, tokenizer, p, 8) for p in prompts]
    other = next(i for ids in without for i in ids[1:-1] if i != ids[0])
    state_ends(folder, **json.loads(json.dumps(STATED[stated]).replace('"X"', str(other))))
    model = attached(folder)
    objective = make_objective(data_of([(p, "green") for p in prompts], limit=8), "test", model.tokenizer)
    outputs = Engine(model).evaluate(model.base_point(), [objective])[0].outputs
    written = [generated(folder, tokenizer, p, 8) for p in prompts]
    used = {other, tokenizer.eos_token_id} if "X" in json.dumps(STATED[stated]) else {tokenizer.eos_token_id}
    stops = [ids[-1] in used for ids in written]
    cut = [ids[:-1] if stop else ids for ids, stop in zip(written, stops, strict=True)]
    assert list(outputs) == [tokenizer.decode(ids, skip_special_tokens=True) for ids in cut]
    assert (written == without) == (len(used) == 1)
    key = make_objective(data_of([(p, "green") for p in prompts], limit=8), "test", tokenizer).settings_key
    assert (objective.settings_key == key) == (len(used) == 1)  # stored values of others stay found


def turns(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN]})


@pytest.mark.parametrize("written", ["green{t}", "green{t}\n", "green{t}{e}", "green{e}{t}", "green"])
def test_an_answer_that_ends_a_turn_ends_there(written, changed, tokenizer):
    """As Llama 3's: `<|eot_id|>` ends a turn, `<|end_of_text|>` a text, and generation stops at both."""
    folder = changed(turns)
    state_ends(folder, generation=[1, len(tokenizer)])
    changed_tokenizer = load_tokenizer(str(folder))
    turn = changed_tokenizer.convert_tokens_to_ids(TURN)
    answer = written.format(t=TURN, e=END)
    end = turn if answer.startswith(f"green{TURN}") else tokenizer.eos_token_id
    objective = make_objective(data_of([("apple:", answer)]), "test", changed_tokenizer)
    assert objective.encoded[0].answer_ids == (*tokenizer("green")["input_ids"], end)
    assert objective.examples[0].answer == "green"


SPECIAL = {
    "start": "{s}green",
    "padding": "green{p}{p}",
    "turn": "green{t}",
    "turn, line": "green{t}\n",
    "both": "{s}green{t}",
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_other_special_tokens_are_read_but_no_output_is_compared_with_them(kind, changed):
    """decode leaves them out of outputs: the score is that of the plain answer, the loss that of all tokens."""
    folder = changed(lambda tokenizer: (turns(tokenizer), adds(f"{START} $A")(tokenizer)))
    tokenizer = load_tokenizer(str(folder))
    answer = SPECIAL[kind].format(s=START, p=tokenizer.pad_token, t=TURN)
    objective = make_objective(data_of([("apple:", answer)]), "test", tokenizer)
    ids = objective.encoded[0].answer_ids
    assert ids == (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    assert objective.examples[0].answer == "green" == tokenizer.decode(ids, skip_special_tokens=True).strip()


def adds(template):
    def change(tokenizer):
        tokenizer.add_special_tokens({"bos_token": START})
        used = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (START, END) if token in template]
        if template != "$A":
            tokenizer._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=used)

    return change


HABITS = ["$A", f"{START} $A", f"$A {END}", f"{START} $A {END}", f"{START} {START} $A", f"{END} $A", f"{END} $A {END}"]
CHAT = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %}:{% endif %}"
    "{% endfor %}"
)
TALK = [{"role": "user", "content": "apple river"}, {"role": "assistant", "content": "green"}]


def by_template(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


@pytest.mark.parametrize("asks", [False, True], ids=["ends with an end token", "ends with a question"])
@pytest.mark.parametrize("habit", HABITS)
def test_a_rendered_chat_has_the_tokens_and_loss_of_its_template(habit, asks, changed, alone):
    """The template brings what the tokenizer puts in front, so nothing is added; and its own end tokens stay."""
    folder = changed(adds(habit))
    tokenizer = load_tokenizer(str(folder))
    front = "".join(habit.split(" $A")[0].split()) if " $A" in habit else ""
    tokenizer.chat_template = front + CHAT
    messages = TALK + [{"role": "user", "content": "seven"}] * asks
    prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    expected = by_template(tokenizer, messages)
    encoded, lost = encode(Example(prompt, "stone"), tokenizer, 64)
    assert list(encoded.prompt_ids) == expected and not lost
    assert (expected[-1] == tokenizer.eos_token_id) == (not asks)
    model = attached(folder)
    objective = make_objective(data_of([(prompt, "stone")]), "test", tokenizer)
    nll = Engine(model).losses(model.base_point(), [objective])[0].nll
    ids = expected + tokenizer("stone", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        log_p = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    by_hand = -sum(float(log_p[i - 1, ids[i]]) for i in range(len(expected), len(ids)))
    assert nll[0] == pytest.approx(by_hand, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("habit", HABITS)
def test_a_prompt_without_special_tokens_gets_those_in_front_and_no_end_behind(habit, changed):
    tokenizer = load_tokenizer(str(changed(adds(habit))))
    whole = tokenizer("apple river:")["input_ids"]
    expected = whole[:-1] if habit.endswith(END) else whole
    assert list(encode(Example("apple river:", "x"), tokenizer, 64)[0].prompt_ids) == expected
    doubled = f"{START}{START}apple"  # what a user wrote twice stays twice
    own = tokenizer(doubled, add_special_tokens=False)["input_ids"]
    found = list(encode(Example(doubled, "x"), tokenizer, 64)[0].prompt_ids)
    assert found == (own if habit.startswith(START) or habit[0] == "$" else [tokenizer.eos_token_id, *own])


@pytest.mark.parametrize(
    "text", ["apple river:", "<s>apple river:", "<s>apple</s>", "<s>apple</s>river</s>", "apple</s>"]
)
def test_tokenizers_of_the_style_of_sentencepiece(text):
    """Llama 2 and Gemma: a start token is added, and words begin with ▁."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([])
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    inner.train_from_iterator(["apple river stone green"] * 5, trainer)
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>")])
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = own if text.startswith("<s>") else [1, *own]
    encoded, _ = encode(Example(text, "green</s>\n"), tokenizer, 64)
    assert list(encoded.prompt_ids) == expected
    assert encoded.prompt_ids.count(1) == 1 and encoded.prompt_ids.count(2) == text.count("</s>")
    assert encoded.answer_ids == (*tokenizer("green", add_special_tokens=False)["input_ids"], 2)
