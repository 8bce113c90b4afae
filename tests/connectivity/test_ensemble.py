"""Ensembles along paths against probabilities averaged by hand, for plain networks and for a language model."""

import gc
import weakref

import numpy as np
import pytest
import torch

from mcanalysis.connectivity.ensemble import ensemble_along
from mcanalysis.errors import UserError
from mcanalysis.evaluation.answer_logits import answer_batches, answer_logits
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.paths import Linear


def network(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=generator, dtype=torch.float64),
        "bias": torch.randn(4, generator=generator, dtype=torch.float64),
    }


def predict(point, x):
    return x @ point["weight"].T + point["bias"]


def data(n=30, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64), torch.randint(4, (n,), generator=generator)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


TS = [0.0, 0.3, 0.5, 1.0]


def test_it_is_the_mean_of_probabilities():
    x, y = data()
    line = Linear(network(0), network(1))
    found = ensemble_along(line, TS, predict, [(x[:11], y[:11]), (x[11:], y[11:])])
    each = []
    for t in TS:
        w, b = ((1 - t) * network(0)[n].numpy() + t * network(1)[n].numpy() for n in ("weight", "bias"))
        each.append(softmax(x.numpy() @ w.T + b))
    labels = y.numpy()
    for p, predictions in [*zip(each, found.members, strict=True), (np.mean(each, axis=0), found.together)]:
        np.testing.assert_allclose(predictions.nll, -np.log(p[np.arange(30), labels]), rtol=1e-10)
        np.testing.assert_allclose(predictions.confidence, p.max(axis=1), rtol=1e-10)
        np.testing.assert_allclose(predictions.brier, ((p - np.eye(4)[labels]) ** 2).sum(axis=1), rtol=1e-9, atol=1e-12)
        assert np.array_equal(predictions.correct, p.argmax(axis=1) == labels)
        summary = predictions.summary()
        share = (p.argmax(axis=1) == labels).mean()
        assert (summary["accuracy"], summary["target_accuracy"]) == pytest.approx((share, share))
    # −log is convex: the mean of probabilities cannot lose against the mean of the losses
    assert found.together.summary()["loss"] <= np.mean([m.summary()["loss"] for m in found.members]) + 1e-12


def test_mutual_information_is_the_entropy_of_the_mean_minus_the_mean_entropy():
    x, y = data()
    found = ensemble_along(Linear(network(0), network(1)), [0.0, 1.0], predict, [(x[:11], y[:11]), (x[11:], y[11:])])
    p, q = (softmax(x.numpy() @ n["weight"].numpy().T + n["bias"].numpy()) for n in (network(0), network(1)))
    H = lambda p: -(p * np.log(p)).sum(axis=1)  # noqa: E731
    np.testing.assert_allclose(found.together.entropy, H((p + q) / 2), rtol=1e-10)
    expected = H((p + q) / 2) - (H(p) + H(q)) / 2
    np.testing.assert_allclose(found.mutual_information, expected, rtol=1e-8, atol=1e-12)
    *points, together = found.rows()
    assert together["mutual_information"] == pytest.approx(expected.mean()) and expected.mean() > 0.01
    assert all(np.isnan(row["mutual_information"]) for row in points)


def test_an_ensemble_of_one_point_or_of_equal_points_is_that_point():
    x, y = data()
    alone = ensemble_along(Linear(network(0), network(1)), [0.5], predict, [(x, y)])
    same = ensemble_along(Linear(network(0), network(0)), TS, predict, [(x, y)])
    for found in (alone, same):
        np.testing.assert_allclose(found.together.nll, found.members[0].nll, rtol=1e-12)
        np.testing.assert_allclose(found.together.brier, found.members[0].brier, rtol=1e-10)
        np.testing.assert_allclose(found.mutual_information, 0.0, atol=1e-12)


def test_an_example_is_right_where_all_its_targets_are():
    point = {"w": torch.eye(2)}
    batches = [
        (torch.eye(2)[[0, 0, 1]], torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])),
        (torch.eye(2)[[1]], torch.tensor([1]), torch.tensor([0])),
    ]
    summary = ensemble_along(Linear(point, point), [0.0], lambda p, x: x @ p["w"], batches).together.summary()
    assert summary["target_accuracy"] == 0.75 and summary["accuracy"] == pytest.approx(2 / 3)


def test_no_more_than_one_point_is_held_however_many_there_are():
    x, y = data()
    line = Linear(network(0), network(1))
    alive, most = weakref.WeakSet(), []

    class Held(dict):
        __hash__ = object.__hash__

    def path(t):
        point = Held(line(t))
        alive.add(point)
        gc.collect()
        most.append(len(alive))
        return point

    gc.collect()
    gc.freeze()  # else every collection above goes through all that earlier tests have left
    try:
        ensemble_along(path, np.linspace(0, 1, 40), predict, [(x[:15], y[:15]), (x[15:], y[15:])])
    finally:
        gc.unfreeze()
    assert max(most) <= 2  # the last one may live until the next is there


def test_bad_input_is_refused():
    x, y = data()
    line = Linear(network(0), network(1))
    with pytest.raises(UserError, match="at least one t"):
        ensemble_along(line, [], predict, [(x, y)])
    with pytest.raises(UserError, match="at least one batch"):
        ensemble_along(line, [0.5], predict, [])
    with pytest.raises(UserError, match="one row per label"):
        ensemble_along(line, [0.5], lambda p, x: predict(p, x)[:5], [(x, y)])
    with pytest.raises(UserError, match="t in"):
        ensemble_along(line, [1.5], predict, [(x, y)])


X, Y = data(3)
BAD = {
    "negative": ((X, torch.tensor([0, -100, 1])), "labels .* got negative ones of torch.int64"),
    "too large": ((X, torch.tensor([0, 4, 1])), "labels below 4, .* got 4"),
    "a column": ((X, Y[:, None]), r"labels of shape .* shape \(3, 1\)"),
    "no whole numbers": ((X, Y.double()), "labels .* got torch.float64"),
    "none": ((X[:0], Y[:0]), "labels .* n > 0"),
    "a dict": ({"x": X, "y": Y}, r"\(inputs, labels\) or .* got a dict"),
    "other rows": ((X, Y, torch.tensor([0, 1])), "rows of shape"),
}


@pytest.mark.parametrize(("batch", "message"), BAD.values(), ids=BAD)
def test_batches_of_other_forms_are_refused(batch, message):
    with pytest.raises(UserError, match=message):
        ensemble_along(Linear(network(0), network(1)), TS, predict, [batch])


def test_labels_of_any_kind_of_whole_numbers():
    line = Linear(network(0), network(1))
    expected = ensemble_along(line, TS, predict, [(X, Y)]).together.nll.tolist()
    for labels in (Y.int(), Y.numpy(), Y.tolist()):
        assert ensemble_along(line, TS, predict, [[X, labels]]).together.nll.tolist() == expected


@pytest.mark.parametrize("answer", [lambda logits: logits[:, :1], lambda logits: {"logits": logits}])
def test_one_column_and_what_is_no_tensor_are_no_logits(answer):
    """One logit per example has probability 1, whatever it is."""
    with pytest.raises(UserError, match="at least two classes"):
        ensemble_along(Linear(network(0), network(1)), TS, lambda p, x: answer(predict(p, x)), [(X, 0 * Y)])


def test_a_language_model_is_averaged_over_the_tokens_of_its_answers(
    make_model, make_tasks, random_point, plain_model_at
):
    model = make_model()
    objective = make_objective(make_tasks(num_test=5)[0], "test", model.tokenizer, 128)
    a, b = random_point(model, 1), random_point(model, 2)
    line = Linear(a, b, space="delta")
    before = {n: p.detach().clone() for n, p in model.parameters.items()}
    found = ensemble_along(
        line, [0.0, 1.0], lambda point, batch: answer_logits(model, point, batch), answer_batches(model, objective)
    )
    assert all(torch.equal(before[n], p) for n, p in model.parameters.items())
    plain = [plain_model_at(point) for point in (a, b)]
    nll, right, correct = [], [], []
    for e in objective.encoded:
        ids = torch.tensor([e.prompt_ids + e.answer_ids])
        first = len(e.prompt_ids) - 1
        with torch.no_grad():
            each = [m(input_ids=ids).logits[0, first:-1].double().softmax(-1) for m in plain]
        p = (each[0] + each[1]) / 2
        answer = torch.tensor(e.answer_ids)
        nll += (-p[torch.arange(len(answer)), answer].log()).tolist()
        correct += (p.argmax(-1) == answer).tolist()
        right.append(bool((p.argmax(-1) == answer).all()))
    summary = found.together.summary()
    assert summary["loss"] == pytest.approx(np.mean(nll), rel=1e-4)
    assert summary["target_accuracy"] == pytest.approx(np.mean(correct))
    assert summary["accuracy"] == pytest.approx(np.mean(right))
