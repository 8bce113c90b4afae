"""The evaluation engine against one unpadded example at a time, and against plain `generate`."""

import pytest
import torch
from transformers import GenerationConfig

from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.modes import evaluating
from mcanalysis.strategies import make_strategy
from mcanalysis.tasks.task import Example, Task, TaskData
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.task_trainer import TaskTrainer

LEARNED = (
    ("colour of apple:", "green"),
    ("colour of the north river stone:", "silver"),
    ("number:", "seven"),
    ("odd one:", "quiet<|end|>paper"),  # the text of the end token inside an answer
    ("sentence about the river:", "green river seven stone north"),  # longer than is generated
)


def objective_of(pairs, tokenizer, max_new_tokens=5, name="zeta", score="exact_match"):
    task = Task(name, "en", score, max_new_tokens)
    return make_objective(TaskData.of(task, {"test": [Example(*p) for p in pairs]}), "test", tokenizer, 128)


def generated_alone(network, tokenizer, prompt, max_new_tokens):
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = network.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
        )
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def fitted(make_model, tokenizer, tmp_path_factory):
    """A model that has learned its answers by heart, so that the teacher-forced shortcut is taken."""
    model = make_model(rank=8, target_modules=("all-linear",))
    encoded = objective_of(LEARNED, tokenizer).encoded
    config = TrainingConfig(num_steps=120, batch_size=5, learning_rate=2e-2)
    scratch = str(tmp_path_factory.mktemp("fit"))
    trainer = TaskTrainer(model, make_strategy("sequential", 0), encoded, "fit", config, "0", scratch)
    trainer.train()
    assert trainer.losses[-1] < 0.3
    return model


@pytest.fixture(scope="module")
def gpt2(tiny_base, tokenizer):
    return LoraModel.attach(tiny_base("gpt2"), tokenizer, LoraSettings(4), 0, "gpt2")


@pytest.fixture
def random_pairs(make_examples):
    return [(e.prompt, e.answer) for e in make_examples(9, seed=4)]


@pytest.mark.parametrize("token_budget", [1, 40, 100, 4096])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_per_example_nll_is_that_of_one_unpadded_example(
    engine_of,
    architecture,
    token_budget,
    make_model,
    gpt2,
    tokenizer,
    random_pairs,
    random_point,
    alone,
    plain_model_at,
    tiny_base,
    add_by_hand,
):
    model = make_model() if architecture == "llama" else gpt2
    point = random_point(model)
    plain = plain_model_at(point) if architecture == "llama" else add_by_hand(tiny_base("gpt2"), point)
    objectives = [
        objective_of(random_pairs[:5], tokenizer, name="a"),
        objective_of(random_pairs[5:], tokenizer, name="b"),
    ]
    for objective, evaluation in zip(
        objectives, engine_of(model, objectives, token_budget).evaluate(point, objectives), strict=True
    ):
        m = evaluation.measurement
        assert m.num_examples == len(objective.examples) == len(evaluation.outputs)
        for i, example in enumerate(objective.encoded):
            with torch.no_grad():
                nll = float(alone(plain, example)[0])
            assert m.nll[i] == pytest.approx(nll, rel=1e-5, abs=1e-5)
            assert m.targets[i] == len(example.answer_ids)
        assert m.loss == pytest.approx(m.nll.sum() / m.targets.sum(), rel=1e-12)
        assert m.num_targets == m.targets.sum()
        for (prompt, _), output in zip(
            [(e.prompt, e.answer) for e in objective.examples], evaluation.outputs, strict=True
        ):
            assert output == generated_alone(plain, tokenizer, prompt, 5)


@pytest.mark.parametrize("token_budget", [1, 60, 4096])
def test_outputs_are_those_of_plain_generate_also_where_the_shortcut_is_taken(
    engine_of, fitted, tokenizer, random_pairs, plain_model_at, token_budget
):
    pairs = [*LEARNED, *random_pairs[:3]]
    point = fitted.point()
    objective = objective_of(pairs, tokenizer, max_new_tokens=4)
    evaluation = engine_of(fitted, [objective], token_budget).evaluate(point, [objective])[0]
    plain = plain_model_at(point)
    expected = [generated_alone(plain, tokenizer, prompt, 4) for prompt, _ in pairs]
    assert list(evaluation.outputs) == expected
    assert list(evaluation.outputs[:3]) == [answer for _, answer in LEARNED[:3]]
    assert evaluation.outputs[3] == "quiet"  # generation ends at the first end token
    assert LEARNED[4][1].startswith(evaluation.outputs[4])
    assert LEARNED[4][1] != evaluation.outputs[4]  # and it ends where the task says
    scores = evaluation.measurement.scores
    assert list(scores[:3]) == [1, 1, 1]
    assert evaluation.measurement.score == pytest.approx(scores.mean())


def test_answers_that_would_be_reproduced_are_not_generated(fitted, tokenizer):
    """A pass per batch for the loss, and not one pass per token."""
    objective = objective_of(LEARNED[:3], tokenizer, max_new_tokens=40)
    passes = []
    hook = fitted.base.register_forward_hook(lambda *_: passes.append(1))
    try:
        Engine(fitted).evaluate(fitted.point(), [objective])
        short = len(passes)
        passes.clear()
        Engine(fitted).evaluate(fitted.base_point(), [objective])
    finally:
        hook.remove()
    assert short <= 4
    assert len(passes) >= 40


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "qwen2", "gemma"])
@pytest.mark.parametrize("token_budget", [1, 4096])
def test_outputs_of_every_architecture_are_those_of_plain_generate(
    engine_of, architecture, token_budget, tiny_base, tokenizer, random_pairs, random_point, add_by_hand, alone
):
    model = LoraModel.attach(tiny_base(architecture), tokenizer, LoraSettings(4), 0, architecture)
    point = random_point(model)
    plain = add_by_hand(tiny_base(architecture), point)
    objective = objective_of(random_pairs, tokenizer, max_new_tokens=7)
    evaluation = engine_of(model, [objective], token_budget).evaluate(point, [objective])[0]
    assert list(evaluation.outputs) == [generated_alone(plain, tokenizer, prompt, 7) for prompt, _ in random_pairs]
    for nll, example in zip(evaluation.measurement.nll, objective.encoded, strict=True):
        with torch.no_grad():
            assert nll == pytest.approx(float(alone(plain, example)[0]), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("number", [1, 4])
def test_empty_reference_answers_are_evaluated_like_any(make_model, tokenizer, random_pairs, plain_model_at, number):
    model = make_model()
    pairs = [(prompt, "") for prompt, _ in random_pairs[:number]]
    evaluation = Engine(model).evaluate(model.base_point(), [objective_of(pairs, tokenizer)])[0]
    plain = plain_model_at()
    assert list(evaluation.outputs) == [generated_alone(plain, tokenizer, prompt, 5) for prompt, _ in pairs]
    assert list(evaluation.measurement.targets) == [1] * number


def test_tasks_of_different_lengths_share_batches_and_keep_their_limits(
    make_model, tokenizer, random_pairs, plain_model_at
):
    model, plain = make_model(), plain_model_at()
    limits = (1, 3, 9)
    objectives = [objective_of(random_pairs[k::3], tokenizer, n, name=str(n)) for k, n in enumerate(limits)]
    for limit, objective, evaluation in zip(
        limits, objectives, Engine(model).evaluate(model.base_point(), objectives), strict=True
    ):
        expected = [generated_alone(plain, tokenizer, e.prompt, limit) for e in objective.examples]
        assert list(evaluation.outputs) == expected


@pytest.mark.parametrize(
    "default", [{"repetition_penalty": 8.0}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 5}, {"do_sample": True}]
)
def test_the_models_own_generation_defaults_change_nothing(make_model, tokenizer, random_pairs, default):
    model = make_model()
    objective = objective_of(random_pairs, tokenizer, max_new_tokens=12)
    before = Engine(model).evaluate(model.point(), [objective])[0].outputs
    own = model.base.generation_config
    for name, value in default.items():
        setattr(own, name, value)
    assert Engine(model).evaluate(model.point(), [objective])[0].outputs == before
    assert model.base.generation_config is own
    assert all(getattr(own, name) == value for name, value in default.items())


def test_model_and_training_flag_are_as_they_were(make_model, tokenizer, random_pairs, random_point):
    model = make_model()
    model.load_point(random_point(model, 1))
    before = {k: (v.clone(), v.data_ptr()) for k, v in model.peft.state_dict().items()}
    objective = objective_of(random_pairs, tokenizer)
    for training in (True, False):
        model.peft.train(training)
        Engine(model).evaluate(random_point(model, 2), [objective])
        assert {m.training for m in model.peft.modules()} == {training}
        for name, tensor in model.peft.state_dict().items():
            assert torch.equal(tensor, before[name][0])
            assert tensor.data_ptr() == before[name][1]
    assert all(p.requires_grad for p in model.parameters.values())


def test_each_part_of_the_network_has_its_own_mode_back(make_model, tokenizer, random_pairs):
    """As where somebody trains with one part in evaluation mode, frozen batch statistics say."""
    model = make_model()
    model.peft.train()
    part = next(m for name, m in model.peft.named_modules() if name.endswith("mlp")).eval()
    modes = {name: m.training for name, m in model.peft.named_modules()}
    Engine(model).evaluate(model.point(), [objective_of(random_pairs, tokenizer)])
    with model.without_dropout():
        assert not any(m.training for m in model.peft.modules())
    assert {name: m.training for name, m in model.peft.named_modules()} == modes
    assert model.peft.training and not part.training


def test_layers_that_take_their_adapter_out_hear_that_training_goes_on():
    """As loralib's do: `train` is more than a flag there."""

    class Merging(torch.nn.Linear):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    network = torch.nn.Sequential(Merging(1, 1), torch.nn.Dropout().eval())
    with evaluating(network):
        assert network[0].merged
    assert not network[0].merged and [part.training for part in network] == [True, False]


def test_dropout_is_off_while_a_model_in_training_is_evaluated(gpt2, tokenizer, random_pairs):
    objective = objective_of(random_pairs, tokenizer)  # GPT-2's own configuration drops a tenth
    engine = Engine(gpt2)
    gpt2.peft.train()
    first, second = (engine.evaluate(gpt2.point(), [objective])[0].measurement.nll for _ in range(2))
    gpt2.peft.eval()
    assert (first == second).all()


def test_low_precision_models_are_evaluated_unmerged(make_model, tokenizer, random_pairs, random_point):
    model = make_model(dtype="bfloat16")
    point = random_point(model, scale=0.02)  # a change that bfloat16 weights would mostly round away
    losses = [
        Engine(model).evaluate(p, [objective_of(random_pairs, tokenizer)])[0].measurement.nll
        for p in (point, model.base_point())
    ]
    assert (losses[0] != losses[1]).any()
    with torch.no_grad():
        from mcanalysis.models.encoding import collate

        batch = collate(objective_of(random_pairs, tokenizer).encoded, 0)
        torch.testing.assert_close(
            torch.tensor(losses[0]), model.forward_at(point, batch).nll.double(), rtol=0.02, atol=0.2
        )


def test_unparsable_outputs_score_zero(make_model, tokenizer, random_pairs):
    from mcanalysis.metrics.scores import get_score

    model = make_model()
    objective = objective_of([(p, "A") for p, _ in random_pairs], tokenizer, score="accuracy")
    evaluation = Engine(model).evaluate(model.base_point(), [objective])[0]
    parsed = [get_score("accuracy").parses(output) for output in evaluation.outputs]
    assert parsed.count(False) > 0
    assert all(s == 0 for s, p in zip(evaluation.measurement.scores, parsed, strict=True) if not p)
