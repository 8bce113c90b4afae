"""O-LoRA, InfLoRA, SLAO and merging over whole tasks: accumulation, precision, schedules, what is kept and refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import EncodedExample, collate
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.gradient_subspace import GradientSubspace
from mcanalysis.params.lora import delta_distance, delta_norm
from mcanalysis.params.merging import ties
from mcanalysis.strategies import make_strategy
from mcanalysis.training.engines import check_engine

FAMILIES = ("o_lora", "inflora", "slao", "merge")


@pytest.fixture
def saved_after(train_task, tmp_path):
    """saved_after(strategy, model, tasks, **TrainingConfig) -> the answering learner's point after each task."""

    def run(strategy, model, tasks, **settings):
        strategy.begin(model, len(tasks))
        points = []
        for k, examples in enumerate(tasks):
            strategy.begin_task(model, k, examples)
            train_task(model, strategy, examples, seed=k, **settings)
            strategy.end_task(model, examples)
            strategy.save_learner(model, strategy.answering_learner, tmp_path / "saved")
            points.append(model.read(tmp_path / "saved"))
        return points

    return run


def off(found, expected):
    return max(delta_distance(f, e) / delta_norm(e) for f, e in zip(found, expected, strict=True))


# The others accumulate as `sequential` does: what is their own begins where a task ends.
@pytest.mark.parametrize("name", [n if n == "inflora" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_four_times_four_is_sixteen(name, make_model, encode_examples, saved_after):
    tasks = [encode_examples(48, seed=s) for s in (1, 2)]
    found = []
    for batch_size, accumulation in ((16, 1), (4, 4)):
        # A penalty many times the cross entropy, so that one that counts with every micro-batch would be seen.
        settings = {"lambda1": 20.0, "lambda2": 1.0} if name == "o_lora" else {}
        training = {"batch_size": batch_size, "gradient_accumulation": accumulation, "learning_rate": 1e-3}
        found.append(saved_after(make_strategy(name, 0, **settings), make_model(), tasks, **training))
    assert off(found[0], found[1]) < 1e-4


def test_o_lora_counts_its_penalty_by_the_share_of_the_step(make_model, encode_examples, make_step, saved_after):
    model, strategy = make_model(), make_strategy("o_lora", 0)
    saved_after(strategy, model, [encode_examples(8, seed=s) for s in (1, 2)])
    step = make_step(model, encode_examples(3))
    entropy = step.current_loss(step.forward()).item()
    whole = strategy.loss(step).item() - entropy
    object.__setattr__(step, "share", 0.25)
    assert strategy.loss(step).item() - entropy == pytest.approx(whole / 4, rel=1e-4)
    assert whole > 0


def test_o_lora_starts_each_task_elsewhere(make_model):
    model, strategy, starts = make_model(), make_strategy("o_lora", 0), []
    for k in range(3):
        strategy.begin_task(model, k, [])
        starts.append({n: v for n, v in model.point().items() if ".lora_A." in n})
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert not any(torch.equal(v, starts[other][n]) for n, v in starts[one].items())


def test_o_lora_has_a_gradient_where_the_new_b_is_zero(make_model, encode_examples, make_step):
    model, strategy = make_model(), make_strategy("o_lora", 0, lambda2=0.3)
    strategy.begin_task(model, 0, [])
    strategy.loss(make_step(model, encode_examples(3))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters.values())


@pytest.mark.parametrize(
    "name", [n if n in ("o_lora", "merge") else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_a_low_precision_base_and_dropout_train(name, make_model, encode_examples, saved_after):
    model = make_model(dtype="bfloat16", dropout=0.3)
    for point in saved_after(make_strategy(name, 0), model, [encode_examples(8, seed=s) for s in (1, 2)]):
        assert all(v.dtype == torch.float32 and v.isfinite().all() for v in point.values())
        assert delta_norm(point) > 0


def test_inflora_does_not_change_what_the_model_says_to_an_earlier_task(make_model, train_task, encode_examples):
    old, new = [EncodedExample((5, 40, 90, 7), (60, 2))], encode_examples(8, seed=2)
    shift = {}
    for threshold in (1.0, 1e-9):  # all that the old example uses, and next to nothing
        model = make_model()
        strategy = make_strategy("inflora", 0, threshold_start=threshold, threshold_end=threshold)
        strategy.begin(model, 2)
        strategy.begin_task(model, 0, old)
        train_task(model, strategy, old, batch_size=1, learning_rate=1e-2)
        strategy.end_task(model, old)
        with torch.no_grad():
            before, other = (model.forward(collate(e, 0)).logits for e in (old, new))
        strategy.begin_task(model, 1, new)
        train_task(model, strategy, new, num_steps=5, learning_rate=1e-2)
        with torch.no_grad():
            after, moved = (model.forward(collate(e, 0)).logits for e in (old, new))
        shift[threshold] = float((after - before).abs().max())
        assert float((moved - other).abs().max()) > 0.1  # it does learn
    assert shift[1.0] < 1e-3 < 0.1 < shift[1e-9]


def test_infloras_threshold_rises_over_the_sequence_and_ends_below_its_end(make_model, encode_examples, monkeypatch):
    given = []
    extended = GradientSubspace.extended

    def recording(space, covariance, threshold):
        given.append(threshold)
        return extended(space, covariance, threshold)

    monkeypatch.setattr(GradientSubspace, "extended", recording)
    model = make_model()
    strategy = make_strategy("inflora", 0, threshold_start=0.8, threshold_end=1.0)
    strategy.begin(model, 4)
    for k in range(2):
        strategy.begin_task(model, k, encode_examples(2, seed=k))
        strategy.end_task(model, encode_examples(2, seed=k))
    assert sorted(set(given)) == pytest.approx([0.8, 0.85])


def test_inflora_measures_as_many_examples_as_it_is_told(make_model, encode_examples, monkeypatch):
    measured = []
    covariances = LoraModel.input_covariances

    def recording(model, batches):
        batches = list(batches)
        measured.append(sum(len(b.input_ids) for b in batches))
        return covariances(model, batches)

    monkeypatch.setattr(LoraModel, "input_covariances", recording)
    model = make_model()
    for number in (3, 50, None):
        strategy = make_strategy("inflora", 0, num_covariance_examples=number)
        strategy.begin(model, 2)
        strategy.begin_task(model, 0, encode_examples(20))
    assert measured == [3, 20, 20]


def test_inflora_with_random_designs_draws_each_a_anew_and_projects_it(make_model, encode_examples, train_task):
    tasks, starts, covariances, drawn = [encode_examples(8, seed=s) for s in (1, 2, 3)], [], [], []
    model = make_model()
    strategy = make_strategy("inflora", 0, design="random", threshold_start=0.995)
    strategy.begin(model, 3)
    fresh = model.fresh
    model.fresh = lambda seed: (fresh(seed), drawn.append(model.point()))
    for k, examples in enumerate(tasks):
        strategy.begin_task(model, k, examples)
        starts.append(model.point())
        train_task(model, strategy, examples, learning_rate=1e-2, seed=k)
        with torch.no_grad():  # the energy that is used: of the squared singular values of x·xᵀ, by hand
            covariances.append(model.input_covariances([collate(examples, 0)]))
        strategy.end_task(model, examples)
        assert all(torch.equal(v, starts[k][n]) for n, v in model.point().items() if ".lora_A." in n)
    assert all(torch.equal(v, drawn[0][n]) for n, v in starts[0].items())  # an ordinary start
    for module in model.scaling:
        name = f"{module}.lora_A.weight"
        assert not torch.equal(drawn[1][name], drawn[2][name])
        vectors, energies, _ = torch.linalg.svd(covariances[0][module])
        share = energies.square().cumsum(0) / energies.square().sum()
        used = vectors[:, : int((share < 0.995).sum()) + 1].double()
        rows = drawn[1][name].double()
        rows = rows - rows @ used @ used.T
        expected = rows / rows.norm(dim=1, keepdim=True) / 3**0.5
        torch.testing.assert_close(starts[1][name].double(), expected, rtol=1e-3, atol=1e-4)


def test_inflora_with_random_designs_has_nothing_left_where_all_directions_are_used(make_model, caplog):
    model, strategy = make_model(), make_strategy("inflora", 0, design="random")
    for module in model.scaling:
        width = model.parameters[f"{module}.lora_A.weight"].shape[1]
        strategy.used[module] = GradientSubspace(torch.zeros(width, 0), holds_free=True)
    strategy.begin_task(model, 1, [])
    assert not any(p.any() for p in model.parameters.values())  # no number divided by zero, either
    rows = sum(model.parameters[f"{module}.lora_A.weight"].shape[0] for module in model.scaling)
    assert f"inflora: {rows} of {rows} rows of A are 0 in task 2" in caplog.text


@pytest.mark.parametrize(("architecture", "targets"), [("gpt2", None), ("opt", ("all-linear",))])
def test_inflora_measures_inputs_of_any_shape(
    architecture, targets, tiny_base, tokenizer, encode_examples, saved_after
):
    model = LoraModel.attach(tiny_base(architecture), tokenizer, LoraSettings(4, 8.0, 0.0, targets), 0, architecture)
    points = saved_after(make_strategy("inflora", 0), model, [encode_examples(8, seed=s) for s in (1, 2)])
    assert delta_norm(points[0]) > 0


def test_a_sharding_engine_leaves_an_adapter_whole_whose_a_is_not_trained(make_model):
    model = make_model()
    model.train_only_b()
    plugin = SimpleNamespace(fsdp_version=2, ignored_modules=None)
    check_engine(SimpleNamespace(fsdp_plugin=plugin), make_strategy("inflora", 0), model.network)
    ignored = {p for m in plugin.ignored_modules for p in m.parameters()}
    assert ignored == set(model.parameters.values())


def test_slao_refuses_a_rank_above_a_layers_width_before_anything_is_trained(make_model):
    with pytest.raises(UserError, match="width 32, got 40"):
        make_strategy("slao", 0).begin(make_model(rank=40), 2)


def test_merging_keeps_its_report_and_its_adapters_over_a_stop(make_model, encode_examples, saved_after):
    model, strategy = make_model(), make_strategy("merge", 0, rank=2)
    saved_after(strategy, model, [encode_examples(8, seed=s) for s in (1, 2)])
    tensors, values = strategy.state()
    other = make_strategy("merge", 0, rank=2)
    other.load_state(model, load(save({k: v.contiguous() for k, v in tensors.items()})), json.loads(json.dumps(values)))
    assert other.report == strategy.report and len(other.report["truncation_error"]) == 2
    for one, two in zip(strategy.adapters, other.adapters, strict=True):
        assert all(torch.equal(v, two[k]) for k, v in one.items())


def test_where_ties_cancel_the_sign_of_the_whole_model_decides():
    def row(*entries):
        return {"q.lora_A.weight": torch.tensor([entries]), "q.lora_B.weight": torch.ones(1, 1)}

    merged = ties([row(1.0, 3.0, 2.0), row(-1.0, 1.0, 4.0)], density=1.0)  # two entries are positive, one is 0
    torch.testing.assert_close(merged["q.lora_B.weight"] @ merged["q.lora_A.weight"], torch.tensor([[1.0, 2.0, 3.0]]))
