"""Writing that ends when the score is decided, against writing to the end: the same numbers, of fewer tokens."""

import numpy as np
import pytest
import torch
from tokenizers import decoders

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.evaluation.engine import Engine, EngineSettings
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.metrics import SCORES
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.loading import load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.tasks.task import Example, Task, TaskData

LIMIT = 12
READ_TO_THE_END = {"edit_similarity", "final_number_accuracy", "rouge_l", "sari"}
REFERENCE = {"accuracy": "B", "letter_anywhere": "B", "final_number_accuracy": "7"}  # others: words


def objective_of(pairs, tokenizer, score):
    data = TaskData.of(Task(score, "en", score, LIMIT), {"test": [Example(*pair) for pair in pairs]})
    return make_objective(data, "test", tokenizer, 128)


@pytest.fixture
def tokens_read():
    """tokens_read(model, call) -> what the call returns, and how many tokens (padding too) the model read for it."""

    def run(model, call):
        seen = []

        def witness(module, args, inputs):
            seen.append(inputs["input_ids"].numel())

        handle = model.base.register_forward_pre_hook(witness, with_kwargs=True)
        try:
            return call(), sum(seen)
        finally:
            handle.remove()

    return run


@pytest.mark.parametrize("score", sorted(SCORES))
def test_scores_are_those_of_whole_outputs_and_less_is_read(
    score, make_model, tokenizer, make_examples, random_point, tokens_read
):
    model = make_model()
    point, engine = random_point(model, 5, scale=0.6), Engine(model)  # words, numbers, halves of characters
    examples = make_examples(12, seed=3)
    written = engine.evaluate(point, [objective_of([(e.prompt, e.answer) for e in examples], tokenizer, "rouge_l")])
    right = written[0].outputs  # every third answer is what is written, every third shares its first half with it
    pairs = [
        (e.prompt, REFERENCE.get(score) or (right[i], right[i][: len(right[i]) // 2] + "x", e.answer)[i % 3])
        for i, e in enumerate(examples)
    ]
    objective = objective_of(pairs, tokenizer, score)
    (whole,), read_whole = tokens_read(model, lambda: engine.evaluate(point, [objective]))
    (cut,), read = tokens_read(model, lambda: engine.measure(point, [objective]))
    assert cut == whole.measurement  # to the bit
    assert read == read_whole if score in READ_TO_THE_END else read < read_whole
    if score not in REFERENCE:
        assert whole.measurement.score > 0
    assert whole.outputs == right


def test_letters_numbers_and_words_of_a_model_that_has_learned_to_answer(tokens_read):
    base, tokenizer = load_base()
    model = LoraModel.attach(base, tokenizer, LoraSettings(), 0, "embedded")
    tasks = load_benchmark("embedded", sizes={"train": 1, "eval": 1, "test": 16})
    point, engine = model.base_point(), Engine(model)
    objectives = [make_objective(data, "test", tokenizer) for data in tasks]
    prompts = [e.prompt for e in objectives[0].examples]  # of letters; the base answers many with a number
    given = [output.strip() for output in engine.evaluate(point, objectives[:1])[0].outputs]
    answers = [text if text.isdecimal() and i % 4 else "2" for i, text in enumerate(given)]
    objectives.append(objective_of(zip(prompts, answers, strict=True), tokenizer, "number_accuracy"))
    whole, read_whole = tokens_read(model, lambda: engine.evaluate(point, objectives))
    cut, read = tokens_read(model, lambda: engine.measure(point, objectives))
    assert cut == [e.measurement for e in whole]
    assert read < read_whole
    right = {o.task.score for o, m in zip(objectives, cut, strict=True) if m.score > 0}
    assert {"accuracy", "number_accuracy"} <= right


@pytest.mark.parametrize("architecture", ["gpt2", "gemma", "mistral"])  # mistral's window is shorter than prompts
@pytest.mark.parametrize("settings", [{}, {"prefix": "whole", "token_budget": 120}])
def test_writing_goes_on_where_it_leaves_the_answer(
    architecture, settings, tiny_base, tokenizer, make_examples, random_point, add_by_hand
):
    """Outputs are those of plain decoding, one row at a time without a cache, wherever the answers part from them."""
    model = LoraModel.attach(tiny_base(architecture), tokenizer, LoraSettings(4), 0, architecture)
    point = random_point(model)
    plain = add_by_hand(tiny_base(architecture), point)
    expected = []
    examples = [Example(f"Here are words. {e.prompt}", e.answer) for e in make_examples(9, seed=5)]
    for example in examples:
        ids = tokenizer(example.prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + LIMIT:
            with torch.no_grad():
                ids.append(int(plain(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        expected.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    # row i agrees with what is written for about i of 8 parts
    pairs = [
        (e.prompt, expected[i][: len(expected[i]) * i // 8] + " " + e.answer if i < 8 else expected[i])
        for i, e in enumerate(examples)
    ]
    objective = objective_of(pairs, tokenizer, "exact_match")
    evaluation = Engine(model, EngineSettings(**settings)).evaluate(point, [objective])[0]
    assert list(evaluation.outputs) == expected


def test_a_tokenizer_of_which_nothing_is_known_is_read_to_the_end(base_folder, make_examples, tokens_read):
    base, tokenizer = load_base(str(base_folder))
    pairs = [(e.prompt, "B") for e in make_examples(4)]
    model = LoraModel.attach(base, tokenizer, LoraSettings(4), 0, "base")
    objective = objective_of(pairs, tokenizer, "accuracy")
    known = tokens_read(model, lambda: Engine(model).measure(model.point(), [objective]))[1]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 0, 1)])
    unknown = tokens_read(model, lambda: Engine(model).measure(model.point(), [objective]))[1]
    assert known < unknown == tokens_read(model, lambda: Engine(model).evaluate(model.point(), [objective]))[1]


def test_points_that_are_not_numbers_have_no_score(make_model, tokenizer, make_examples):
    model = make_model()
    point = {name: torch.full_like(tensor, np.nan) for name, tensor in model.point().items()}
    objective = objective_of([(e.prompt, e.answer) for e in make_examples(3)], tokenizer, "exact_match")
    measured = Engine(model).measure(point, [objective])[0]
    assert np.isnan(measured.loss) and np.isnan(measured.scores).all()
