"""The settings of I-LoRA: what is averaged and how, what is made consistent, who answers; oracles in NumPy."""

import json

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import LoraSettings, load_adapter
from mcanalysis.models.encoding import EncodedExample, collate
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.ilora import Ilora, IloraConfig
from mcanalysis.strategies.strategy import Step, Totals
from mcanalysis.training.config import Execution, TrainingConfig
from mcanalysis.training.continual_trainer import ContinualTrainer, train

EPS = torch.finfo(torch.float32).eps  # adapters are stored in float32


def numbers(point):
    return {k: v.detach().double().numpy().copy() for k, v in point.items()}


def deltas(point):
    """ΔW per module, dense, in float64."""
    point = numbers(point)
    return {
        k.removesuffix(".lora_A.weight"): point[k.replace("lora_A", "lora_B")] @ point[k]
        for k in point
        if ".lora_A." in k
    }


def size(matrices):
    return float(np.sqrt(sum((m**2).sum() for m in matrices.values())))


def apart(a, b):
    assert a.keys() == b.keys()
    return size({k: a[k] - b[k] for k in a})


class Recorded(Ilora):
    """Keeps where slow began and the fast point after every step."""

    def begin(self, model, num_tasks):
        super().begin(model, num_tasks)
        self.start, self.fast = model.point(), []

    def after_step(self, model, examples, first_pass):
        super().after_step(model, examples, first_pass)
        self.fast.append(model.point())


@pytest.fixture
def trained(make_model, make_tasks, tmp_path):
    def run(num_steps=5, **settings):
        strategy = Recorded(IloraConfig(**settings), seed=0)
        config = TrainingConfig(num_steps=num_steps, batch_size=4, learning_rate=1e-2, max_length=128)
        model = make_model(alpha=12.0)
        ContinualTrainer(model, make_tasks(num_test=1), strategy, config, tmp_path / "run").run()
        return (
            strategy,
            model,
            lambda k, learner: load_adapter(tmp_path / "run" / "minima" / ("1-zeta", "2-alpha")[k - 1] / learner).point,
        )

    return run


def dense_average(strategy, number, ema_decay, reset_at=None):
    dense = deltas(strategy.start)
    for k, fast in enumerate(strategy.fast[:number], start=1):
        if k - 1 == reset_at:
            dense = deltas(strategy.fast[k - 2])
        decay = min(1 - 1 / (k + 1), ema_decay)
        dense = {m: decay * dense[m] + (1 - decay) * w for m, w in deltas(fast).items()}
    return dense


# --- the average


def test_without_warm_up_the_decay_is_constant(trained):
    strategy, _, saved = trained(ema_decay=0.9, warm_up=False)
    expected = numbers(strategy.start)
    for fast in strategy.fast:
        expected = {k: 0.9 * expected[k] + (1 - 0.9) * v for k, v in numbers(fast).items()}
    for name, value in numbers(saved(2, "slow")).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("ema_decay", [0.25, 0.8, 0.999])
def test_in_product_space_slow_is_the_average_of_the_weight_changes(trained, ema_decay):
    strategy, _, saved = trained(average_in="product", ema_decay=ema_decay, slow_rank=36)  # 4 + 32, the base's width
    for k, number in ((1, 5), (2, 10)):
        expected = dense_average(strategy, number, ema_decay)
        assert apart(deltas(saved(k, "slow")), expected) < 100 * EPS * size(expected)
        error, away = strategy.report["product_truncation_bound"][k - 1], deltas(strategy.fast[number - 1])
        assert error < 100 * EPS
        assert apart(expected, away) > 0.01 * size(expected)  # slow averages, it is not fast
    assert len(strategy.report["product_truncation_bound"]) == 2


def test_the_default_rank_is_four_times_that_of_fast_and_its_error_is_bounded(trained):
    strategy, _, saved = trained(average_in="product", ema_decay=0.95, num_steps=8)
    for k, number in ((1, 8), (2, 16)):
        slow = saved(k, "slow")
        assert {v.shape[0] for n, v in slow.items() if ".lora_A." in n} == {16}
        expected = dense_average(strategy, number, 0.95)
        error = apart(deltas(slow), expected) / size(expected)
        assert error < 2e-3
        assert error < 1.001 * strategy.report["product_truncation_bound"][k - 1] + 100 * EPS


@pytest.mark.parametrize("settings", [{"average_in": "product"}, {"report_deviation": True}], ids=["product", "factor"])
def test_how_far_the_two_averages_part_is_reported(trained, settings):
    strategy, _, saved = trained(ema_decay=0.9, **settings)
    factors = numbers(strategy.start)
    for k, fast in enumerate(strategy.fast, start=1):
        decay = min(1 - 1 / (k + 1), 0.9)
        factors = {n: decay * factors[n] + (1 - decay) * v for n, v in numbers(fast).items()}
        if k % 5 == 0:
            dense = dense_average(strategy, k, 0.9)
            product = deltas({n: torch.tensor(v) for n, v in factors.items()})
            expected = apart(product, dense) / size(dense)
            assert expected > 1e-3
            assert strategy.report["factor_product_deviation"][k // 5 - 1] == pytest.approx(expected, rel=1e-2)
    if "report_deviation" in settings:  # slow is that of the factors all the same
        for name, value in numbers(saved(2, "slow")).items():
            np.testing.assert_allclose(value, factors[name], rtol=2e-5, atol=2e-6)
    json.dumps(strategy.report)


def test_nothing_is_reported_by_default(trained):
    assert trained(num_steps=1)[0].report == {}


def test_reset_forgets_in_product_space_too(trained):
    strategy, _, saved = trained(average_in="product", ema_decay=0.9, slow_rank=36, reset_at_task=True)
    expected = dense_average(strategy, 10, 0.9, reset_at=5)
    assert apart(deltas(saved(2, "slow")), expected) < 100 * EPS * size(expected)
    assert apart(expected, dense_average(strategy, 10, 0.9)) > 1e-3 * size(expected)


def test_the_update_makes_no_copy_of_the_adapter(make_model, monkeypatch):
    model, strategy = make_model(alpha=12.0), Ilora(IloraConfig(), seed=0)
    strategy.begin(model, 1)
    monkeypatch.setattr(model, "point", lambda: pytest.fail("a copy was made"))
    strategy.after_step(model, [], [])


# --- who answers


@pytest.mark.parametrize("a", [0.0, 0.25, 1])
def test_a_number_is_a_third_learner_between_fast_and_slow_in_factors(trained, a):
    strategy, _, saved = trained(ema_decay=0.9, answering=a)
    assert strategy.learners == ("fast", "slow", "blend")
    assert strategy.answering_learner == "blend"
    assert Ilora.learners == ("fast", "slow")  # of this run alone
    fast, slow, blend = (numbers(saved(2, learner)) for learner in strategy.learners)
    assert max(np.abs(fast[k] - slow[k]).max() for k in fast) > 1e-4
    for name in fast:
        np.testing.assert_allclose(
            blend[name], fast[name] + a * (slow[name] - fast[name]), rtol=20 * EPS, atol=20 * EPS
        )


def test_a_blend_in_product_space_is_straight_in_the_weight_changes(trained):
    _, _, saved = trained(ema_decay=0.9, average_in="product", answering=0.25)
    fast, slow, blend = (deltas(saved(2, learner)) for learner in ("fast", "slow", "blend"))
    expected = {m: 0.75 * fast[m] + 0.25 * slow[m] for m in fast}
    assert apart(blend, expected) < 100 * EPS * size(expected)


def test_the_scores_that_count_are_those_of_the_blend(run_config, make_tasks, tmp_path):
    config = run_config("ilora", strategy_settings={"answering": 0.5})
    assert train(config, tmp_path / "run", device="cpu", tasks=make_tasks(num_test=1))
    tables = {p.name for p in (tmp_path / "run" / "tables").iterdir()}
    assert {"accuracy_matrix.csv", "accuracy_matrix_fast.csv", "accuracy_matrix_slow.csv"} <= tables
    assert "accuracy_matrix_blend.csv" not in tables


# --- consistency


@pytest.fixture
def fast_and_slow(make_model, random_point):
    model = make_model(alpha=12.0, target_modules=("all-linear",))
    model.load_point(random_point(model, 1))
    return model, random_point(model, 2)


def answer_logits(network, example):
    ids = torch.tensor([example.prompt_ids + example.answer_ids])
    with torch.no_grad():
        return network(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1].double()


@pytest.mark.parametrize("one_sided", [False, True])
def test_consistency_on_logits_is_over_answer_tokens_and_vocabulary(
    fast_and_slow, encode_examples, plain_model_at, make_step, one_sided
):
    model, slow = fast_and_slow
    current, replay = encode_examples(3, seed=1), encode_examples(4, seed=2)
    form = "one_sided" if one_sided else "two_sided"
    strategy = make_strategy("ilora", seed=0, consistency_on="logits", consistency_form=form, consistency_weight=0.3)
    strategy.slow = slow
    fast_alone, slow_alone = plain_model_at(model.point()), plain_model_at(slow)
    gaps = torch.cat([answer_logits(slow_alone, e) - answer_logits(fast_alone, e) for e in replay])
    expected = float((gaps.clamp(min=0) if one_sided else gaps).square().mean())
    assert expected > 0.1
    step = make_step(model, current, replay)
    without = make_strategy("er", seed=0).loss(step).item()
    assert strategy.loss(step).item() == pytest.approx(without + 0.3 * expected, rel=1e-5)


def test_fast_follows_the_gradient_of_the_gap_of_logits(fast_and_slow, encode_examples, make_step, check_gradient):
    model, slow = fast_and_slow
    strategy = make_strategy("ilora", seed=0, consistency_on="logits", consistency_weight=1.0)
    strategy.slow = {k: v.requires_grad_() for k, v in slow.items()}
    step = make_step(model, encode_examples(3, seed=1), encode_examples(4, seed=2))
    strategy.loss(step).backward()
    assert all(v.grad is None for v in slow.values())
    check_gradient(model, lambda: strategy.loss(step))


@pytest.mark.parametrize("on", ["hidden_states", "logits"])
@pytest.mark.parametrize("long", ["prompt", "answer"])
def test_replayed_rows_much_shorter_than_the_current_ones(
    fast_and_slow, encode_examples, make_step, monkeypatch, on, long
):
    """Their empty columns are left out of slow's pass, which changes nothing."""
    model, slow = fast_and_slow
    replay = encode_examples(4, seed=2)
    word = encode_examples(1)[0].prompt_ids[0]
    plain = [EncodedExample((word, word), (word,))]
    current = [EncodedExample((word,) * 90, (word,)) if long == "prompt" else EncodedExample((word,), (word,) * 90)]
    strategy, er = make_strategy("ilora", seed=0, consistency_on=on), make_strategy("er", seed=0)
    strategy.slow = slow
    widths, forward_at = [], model.forward_at
    monkeypatch.setattr(model, "forward_at", lambda p, b, h: widths.append(b.input_ids.shape[1]) or forward_at(p, b, h))
    gaps = []
    for rows in (plain, current):
        step = make_step(model, rows, replay)
        gaps.append(strategy.loss(step).item() - er.loss(step).item())
    assert gaps[0] > 1e-3
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)
    assert widths == [max(len(e) for e in replay)] * 2


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt", "qwen2", "gemma"])
def test_slow_computes_no_logits_where_hidden_states_are_compared(
    architecture, make_model, tiny_base, tokenizer, encode_examples, make_step, random_point
):
    if architecture == "llama":
        model = make_model()
    else:
        model = LoraModel.attach(tiny_base(architecture), tokenizer, LoraSettings(4, 12.0), 0, architecture)
    strategy, er = make_strategy("ilora", seed=0), make_strategy("er", seed=0)
    strategy.slow = random_point(model, 2)
    seen = []
    head = model.base.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[:-1].numel()))
    step = make_step(model, encode_examples(2, seed=1), encode_examples(3, seed=2))
    loss = strategy.loss(step)
    handle.remove()
    assert seen == [step.totals.current_targets + step.totals.replay_targets, 0]
    assert loss.item() > er.loss(step).item()


@pytest.mark.parametrize(
    "settings",
    [{"consistency_on": "logits"}, {"average_in": "product"}, {"consistency_on": "logits", "average_in": "product"}],
    ids=["logits", "product", "both"],
)
def test_four_times_four_is_sixteen(make_model, encode_examples, four_times_four, random_point, settings):
    def start():
        model = make_model(alpha=12.0)
        model.load_point(random_point(model, 1))
        strategy = make_strategy("ilora", seed=0, memory_size=40, **settings)
        strategy.begin(model, 2)
        strategy.begin_task(model, 1, [])
        strategy.rehearsal.remember(encode_examples(40, seed=7), [True] * 40, 0)
        strategy.slow = random_point(model, 2)
        return model, strategy

    def end(model, strategy):
        slow = strategy.slow_point
        return {**model.point(), **{f"slow.{k}": v for k, v in slow.items() if ".lora_B." not in k}}

    four_times_four(start, end)


def test_parts_of_a_logit_gap_add_up(fast_and_slow, encode_examples):
    """Two micro-batches, normalised by the totals of both, are one batch."""
    model, slow = fast_and_slow
    strategy = make_strategy("ilora", seed=0, consistency_on="logits")
    strategy.slow = slow
    current, replay = encode_examples(4, seed=1), encode_examples(4, seed=2)
    totals = Totals(
        sum(len(e.answer_ids) for e in current), sum(len(e.answer_ids) for e in replay), sum(len(e) for e in replay)
    )

    def loss(rows):
        batch = collate([*current[rows], *replay[rows]], 0)
        return strategy.loss(Step(model.peft, model, batch, len(current[rows]), totals)).item()

    assert loss(slice(0, 1)) + loss(slice(1, 4)) == pytest.approx(loss(slice(0, 4)), rel=1e-5)


# --- stopping and resuming


def test_the_state_in_product_space_round_trips(make_model, random_point, encode_examples):
    model = make_model()
    config = IloraConfig(average_in="product", memory_size=3, slow_rank=6)
    strategy, other = Ilora(config, seed=0), Ilora(config, seed=9)
    strategy.begin(model, 2)
    strategy.begin_task(model, 0, [])
    for seed in range(5):
        model.load_point(random_point(model, seed))
        strategy.after_step(model, encode_examples(4, seed), [True] * 4)
    strategy.end_task(model, [])
    tensors, values = strategy.state()
    other.begin(model, 2)
    other.load_state(model, {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(values)))
    for s in (strategy, other):
        s.begin_task(model, 1, [])
        for seed in (5, 6, 7):
            model.load_point(random_point(model, seed))
            s.after_step(model, encode_examples(4, 8), [True] * 4)
        s.end_task(model, [])
    ours, theirs = strategy.slow_point, other.slow_point
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert strategy.report == other.report
    assert len(other.report["factor_product_deviation"]) == 2
    assert other.report["product_truncation_bound"][0] > 0


def test_a_stopped_run_in_product_space_ends_with_the_same_bytes(
    run_config, make_tasks, adapter_bytes, tmp_path, monkeypatch
):
    tasks = make_tasks(num_train=10, num_test=1)
    config = run_config("ilora", 4, strategy_settings={"average_in": "product", "slow_rank": 6, "answering": 0.5})
    train(config, tmp_path / "whole", device="cpu", tasks=tasks)
    calls, after_step = [], Ilora.after_step
    with monkeypatch.context() as patched:

        def stopping(self, *args):
            calls.append(1)
            if len(calls) == 7:  # the third step of the second task
                raise KeyboardInterrupt
            after_step(self, *args)

        patched.setattr(Ilora, "after_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", device="cpu", tasks=tasks, execution=Execution(save_steps=1))
    train(config, tmp_path / "run", device="cpu", tasks=tasks, resume=True)
    expected = adapter_bytes(tmp_path / "whole")
    assert len(expected) == 6
    assert adapter_bytes(tmp_path / "run") == expected


# --- settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"average_in": "delta"}, "average_in"),
        ({"consistency_on": "attention"}, "consistency_on"),
        ({"consistency_on": "logits", "consistency_layers": 1}, "consistency_layers"),
        ({"answering": 1.5}, "answering"),
        ({"answering": -0.1}, "answering"),
        ({"answering": True}, "answering"),
        ({"answering": None}, "answering"),
        ({"slow_rank": 8}, "slow_rank"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, named):
    with pytest.raises(UserError, match=named):
        make_strategy("ilora", seed=0, **settings)


@pytest.mark.parametrize("slow_rank", [-1, 4])
def test_an_average_of_products_needs_a_rank_above_that_of_fast(make_model, slow_rank):
    strategy = make_strategy("ilora", seed=0, average_in="product", slow_rank=slow_rank)
    with pytest.raises(UserError, match="slow_rank above the adapter's rank 4"):
        strategy.begin(make_model(), 1)
