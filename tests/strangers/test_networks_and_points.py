"""Points and results as strangers bring them: one module loaded twice, tied weights, odd precisions, odd results."""

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

import mcanalysis as mc
from mcanalysis.connectivity.simplex_grid import simplex_profile
from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.metrics.representation_similarity import CKA, linear_cka
from mcanalysis.params import content_hash, distance, merging
from mcanalysis.params.subspace_overlap import subspace_overlap
from mcanalysis.params.weight_distance import module_distances, weight_distance
from mcanalysis.studies.landscape.grid import Axis, evaluate_grid
from mcanalysis.symmetry import match_weights, mlp_spec

# ---- two checkpoints loaded into one module


def two_loadings():
    """(first, second) of one module as `named_parameters` shows it after each loading, and snapshots of them."""
    net = nn.Linear(3, 2)
    files = [{n: torch.full_like(t, float(i)) for n, t in net.state_dict().items()} for i in (1, 5)]
    live, kept = [], []
    for file in files:
        net.load_state_dict(file)
        live.append(dict(net.named_parameters()))
        kept.append(mc.snapshot(net))
    return live, kept


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # a layer of no inputs is what is tested
def test_so_are_those_of_a_module_with_an_empty_tensor():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(0, 2, bias=False))
    first = dict(net.named_parameters())
    with pytest.raises(PointMismatchError, match="the same tensors in memory"):
        mc.Linear(first, dict(net.named_parameters()))
    empty = {"w": torch.zeros(0)}
    mc.Linear(empty, {"w": empty["w"]})


def adapters_of_one_module():
    A, B = torch.randn(2, 3), torch.randn(4, 2)
    return [{"q.lora_A.weight": A, "q.lora_B.weight": B} for _ in range(2)]


JOINED = {
    "linear": lambda a, b: mc.Linear(a, b),
    "bezier": lambda a, b: mc.Bezier(a, b),
    "polychain": lambda a, b: mc.PolyChain(a, b),
    "segmented": lambda a, b: mc.SegmentedBezier(a, b),
    "simplex": lambda a, b: mc.Simplex(a, b),
    "plane": lambda a, b: mc.Plane(a, b, {n: torch.randn_like(t) for n, t in a.items()}),
    "distance": distance,
    "weight_distance": weight_distance,
    "module_distances": module_distances,
    "pca": lambda a, b: mc.fit_trajectory_pca([{n: t + 1 for n, t in a.items()}, a, b], 1),
    "attribute": lambda a, b: mc.attribute((a, b), lambda p: 0.0, {"x": list(a)[:1]}),
}


@pytest.mark.parametrize("join", JOINED.values(), ids=JOINED)
def test_two_checkpoints_loaded_into_one_module_are_refused(join):
    live, kept = two_loadings()
    with pytest.raises(PointMismatchError, match=r"the same tensors in memory.*mc\.snapshot\(module\)"):
        join(*live)
    join(*kept)


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: mc.Linear(a, b, space="aligned"),
        lambda a, b: mc.Linear(a, b, space="delta"),
        lambda a, b: merging.average([a, b]),
        lambda a, b: merging.task_arithmetic([a, b], 1.0),
        lambda a, b: merging.ties([a, b], 0.5),
        subspace_overlap,
    ],
)
def test_so_are_two_adapters_loaded_into_one(join):
    a, b = adapters_of_one_module()
    with pytest.raises(PointMismatchError, match="the same tensors in memory"):
        join(a, b)
    join(a, a)  # one dict twice is meant
    join(a, {n: t.clone() for n, t in b.items()})


def test_so_are_two_networks_to_be_matched():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    a, b = dict(net.named_parameters()), dict(net.named_parameters())
    with pytest.raises(PointMismatchError, match="the same tensors in memory"):
        match_weights(a, b, mlp_spec(a, ["0", "2"]))


def test_shared_frozen_layers_and_one_dict_twice_are_allowed():
    live, kept = two_loadings()
    assert mc.Linear(*kept).length() == pytest.approx(4 * np.sqrt(8), rel=1e-6)
    assert mc.Linear(live[0], live[0]).length() == 0.0
    frozen = {"bias": live[0]["bias"]}
    assert mc.Linear({**kept[0], **frozen}, {**kept[1], **frozen}).length() == pytest.approx(4 * np.sqrt(6), rel=1e-6)


# ---- what a state dict holds


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.norm(self.embed(ids)))


def test_a_snapshot_of_a_module_has_tied_weights_once_and_buffers_but_no_counters():
    net = Tied()
    net.norm.running_mean.fill_(3.0)
    kept = mc.snapshot(net)
    assert set(kept) == {"embed.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
    assert not any(t.requires_grad for t in kept.values())
    net.embed.weight.data.zero_()
    net.norm.running_mean.zero_()
    assert kept["norm.running_mean"].tolist() == [3.0] * 3 and kept["embed.weight"].abs().sum() > 0


def test_tied_weights_of_a_state_dict_are_one_or_refused():
    a, b, ids = Tied(), Tied(), torch.arange(5)
    objective = mc.module_objective(
        a, lambda net, batch: nn.functional.cross_entropy(net(batch), batch, reduction="none"), [ids]
    )
    floats = [{n: t for n, t in net.state_dict().items() if t.is_floating_point()} for net in (a, b)]
    assert "head.weight" in floats[0]
    whole = mc.profile(mc.Linear(*floats), objective, ts=[0, 0.5, 1])
    once = mc.profile(mc.Linear(mc.snapshot(a), mc.snapshot(b)), objective, ts=[0, 0.5, 1])
    assert whole.losses.tolist() == once.losses.tolist()
    with torch.no_grad():
        assert once.losses[-1] == pytest.approx(float(nn.functional.cross_entropy(b.eval()(ids), ids)), rel=1e-6)
    with pytest.raises(PointMismatchError, match=r"'embed.weight' and 'head.weight', which the module ties, got two"):
        objective({**floats[0], "head.weight": floats[0]["head.weight"] + 1})


def test_counters_are_refused_and_the_remedy_named():
    with pytest.raises(UserError, match=r"torch.int64 at 'norm.num_batches_tracked'.*mc.snapshot\(module\)"):
        mc.Linear(Tied().state_dict(), Tied().state_dict())


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float64]
)
@pytest.mark.parametrize("grad", [False, True])
def test_points_of_any_precision_with_and_without_gradients(dtype, grad):
    values = ([1.0, -2.0, 0.5], [0.0, 4.0, 1.5], [2.0, 1.0, -1.0])
    points = [{"w": torch.tensor(v).to(dtype).requires_grad_(grad)} for v in values]
    a, b, c = points
    exact = [{"w": torch.tensor(v, dtype=torch.float64)} for v in values]
    line = mc.Linear(a, b)
    assert line(0.5)["w"].tolist() == [0.5, 1.0, 1.0] and not line(0.5)["w"].requires_grad
    assert line.length() == pytest.approx(distance(*exact[:2]), rel=1e-6)
    assert distance(a, b) == distance(*exact[:2])
    assert weight_distance(a, b).cosine == pytest.approx(weight_distance(*exact[:2]).cosine, rel=1e-6)
    assert mc.Plane(a, b, c).project(c)[:2] == pytest.approx(mc.Plane(*exact).project(exact[2])[:2], rel=1e-6)
    assert mc.Simplex(a, b, c)([0.5, 0.5, 0.0])["w"].tolist() == [0.5, 1.0, 1.0]
    assert mc.fit_trajectory_pca(points, 1).coordinates == pytest.approx(
        mc.fit_trajectory_pca(exact, 1).coordinates, abs=1e-5
    )
    fitted = mc.fit_curve(mc.Bezier(a, b), lambda p: p["w"].square().sum(), num_steps=3)
    assert fitted.bends[0]["w"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    operator = mc.HessianOperator(lambda p: p["w"].square().sum(), a)
    assert (operator @ np.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert mc.profile(line, lambda p: p["w"].sum(), ts=[0, 1]).losses.tolist() == [-0.5, 5.5]
    assert mc.random_slice({"w": a["w"].reshape(1, 3)})(0.0, 0.0)["w"].flatten().tolist() == values[0]
    assert len(content_hash(a)) == 64 and mc.snapshot(a)["w"].dtype == dtype
    square = lambda p: p["w"].square().sum()  # noqa: E731
    assert mc.epsilon_sharpness(square, a, num_steps=2, num_starts=1).loss == 5.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_network_of_low_precision_computes_in_it(dtype):
    net, x = nn.Linear(3, 2).to(torch.bfloat16), torch.randn(4, 3, dtype=torch.bfloat16)
    objective = mc.module_objective(net, lambda net, x: net(x).float().square().mean(1), [x])
    point = {n: t.to(dtype) for n, t in mc.snapshot(net).items()}
    with torch.no_grad():
        expected = net(x).float().square().mean(1)
    assert objective(point).nll.tolist() == expected.double().tolist()
    assert mc.fit_curve(mc.Bezier(point, {n: t + 1 for n, t in point.items()}), objective, num_steps=2).history


# ---- what an objective returns

PLAIN = {
    "float": float,
    "int-like": lambda x: np.float32(x),
    "NumPy scalar": np.float64,
    "array of one": lambda x: np.array([x]),
    "0-d array": lambda x: np.array(x),
    "0-d tensor": torch.tensor,
    "tensor with a gradient": lambda x: torch.tensor([x], requires_grad=True),
    "bf16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "object with loss": lambda x: SimpleNamespace(loss=torch.tensor(x, requires_grad=True)),
    "transformers": lambda x: CausalLMOutput(loss=torch.tensor(x), logits=torch.zeros(1, 2, 3)),
    "dict": lambda x: {"loss": x, "logits": None},
    "ordered dict": lambda x: SimpleNamespace(**OrderedDict(loss=x, nll=None)),
}
ODD = {
    "None": (lambda x: None, "got None"),
    "tuple": (lambda x: (x, 1.0), "got a tuple of 2"),
    "list": (lambda x: [x], "got a list of 1"),
    "dict": (lambda x: {"nats": x}, "got a dict without one"),
    "text": (str, "got a str without one"),
    "many": (lambda x: torch.ones(3) * x, r"one number, got shape \(3,\)"),
    "losses": (lambda x: SimpleNamespace(loss=np.ones(3)), r"one number, got shape \(3,\)"),
    "nll alone": (lambda x: SimpleNamespace(loss=x, nll=np.ones(3)), "targets .* beside nll"),
    "shapes": (lambda x: SimpleNamespace(loss=x, nll=np.ones(3), targets=np.ones(2)), r"targets of shape \(3,\)"),
    "matrix": (lambda x: SimpleNamespace(loss=x, nll=np.ones((3, 1)), targets=np.ones(3)), r"nll of shape \(n,\)"),
}
ENDS = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}


@pytest.mark.parametrize("wrap", PLAIN.values(), ids=PLAIN)
@pytest.mark.filterwarnings("error")
def test_results_whose_meaning_is_plain(wrap):
    def objective(point):
        return wrap(float(point["w"][0]) * 2)

    assert mc.profile(mc.Linear(*ENDS), objective, ts=[0, 0.5, 1]).losses.tolist() == [0.0, 1.0, 2.0]
    assert simplex_profile(mc.Simplex(*ENDS), {"x": objective}, [(0.5, 0.5)]).loss.tolist() == [1.0]
    assert evaluate_grid(lambda x: {"w": torch.tensor([x])}, objective, Axis(0, 1, 2)).loss.tolist() == [0.0, 2.0]
    table = mc.attribute(ENDS, objective, {"w": ["w"]}, ts=[0, 1])
    assert table.loss.tolist() == [0.0, 2.0, 0.0, 2.0]


@pytest.mark.parametrize(("wrap", "message"), ODD.values(), ids=ODD)
def test_other_results_are_refused_by_name(wrap, message):
    def objective(point):
        return wrap(float(point["w"][0]))

    with pytest.raises(UserError, match=message):
        mc.profile(mc.Linear(*ENDS), objective, ts=[0, 1])
    with pytest.raises(UserError, match=message):
        simplex_profile(mc.Simplex(*ENDS), {"x": objective}, [(0.5, 0.5)])


def test_values_per_example_without_scores_and_without_a_loss():
    def objective(point):
        return SimpleNamespace(nll=torch.tensor([1.0, 5.0], requires_grad=True) + point["w"], targets=[1, 3])

    found = mc.profile(mc.Linear(*ENDS), objective, ts=[0, 0.5, 1])
    assert found.losses.tolist() == [1.5, 1.75, 2.0] and found.scores is None  # Σ nll / Σ targets
    assert found.chord_barrier_interval()[0] >= 0.0
    with pytest.raises(UserError, match="profile with scores"):
        found.chord_barrier("score")
    assert simplex_profile(mc.Simplex(*ENDS), {"x": objective}, [(1.0, 0.0)]).columns[-1] == "loss"


def test_other_examples_at_another_t_are_refused():
    def objective(point):
        n = 2 + int(point["w"])
        return SimpleNamespace(nll=np.ones(n), targets=np.ones(n))

    with pytest.raises(UserError, match="the same examples at every t, got 2 and 3"):
        mc.profile(mc.Linear(*ENDS), objective, ts=[0, 1])


# ---- t within rounding of the ends


@pytest.mark.parametrize("make", [mc.Linear, mc.Bezier, mc.PolyChain, mc.SegmentedBezier])
@pytest.mark.parametrize(
    ("t", "end"), [(1e-17, 0), (-1e-17, 0), (1 - 2**-53, 1), (1 + 2**-52, 1), (sum([0.1] * 10), 1)]
)
def test_t_within_rounding_of_an_end_is_the_end(make, t, end):
    ends = [{"w": torch.randn(5, generator=torch.Generator().manual_seed(i))} for i in (0, 1)]
    assert content_hash(make(*ends)(t)) == content_hash(ends[end])
    found = mc.profile(make(*ends), lambda p: p["w"].sum(), ts=[min(t, 0.0), 0.5, 1.0] if end == 0 else [0.0, 0.5, t])
    assert found.ts[[0, -1]].tolist() == [0.0, 1.0] and found.chord_barrier() >= 0.0
    assert found.arc_lengths[-1] == pytest.approx(distance(*ends), rel=1e-6)


def test_weights_within_rounding_of_a_corner_are_the_corner():
    corners = [{"w": torch.randn(5, generator=torch.Generator().manual_seed(i))} for i in range(3)]
    point = mc.Simplex(*corners)([-1e-17, 1 - 2**-53, 1e-17])
    assert content_hash(point) == content_hash(corners[1])


def test_t_beyond_rounding_is_refused_as_before():
    with pytest.raises(UserError, match=r"t in \[0, 1\]"):
        mc.Linear(*ENDS)(1 + 1e-9)


# ---- degenerate curvature, adapters and representations


@pytest.mark.parametrize(
    "loss", [lambda p: 0 * p["w"].square().sum(), lambda p: p["w"].sum(), lambda p: p["w"].relu().sum()]
)
def test_a_zero_hessian_has_zero_eigenvalues(loss):
    operator = mc.HessianOperator(loss, {"w": torch.ones(40, dtype=torch.float64)})
    for which, number in (("top", 3), ("bottom", 3), ("both", 6)):
        found = mc.eigenvalues(operator, 3, which)
        assert found.values.tolist() == found.residuals.tolist() == [0.0] * number
        np.testing.assert_array_equal(found.vectors.T @ found.vectors, np.eye(number))
    assert mc.trace(operator).value == mc.trace(operator, method="hutch++").value == 0.0
    density = mc.spectral_density(operator)
    assert set(density.nodes) == {0.0} and density.weights.sum() == pytest.approx(1.0)
    assert np.isfinite(density.density(density.grid())).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_cannot_be_aligned(bad):
    good, broken = ({"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.ones(4, 2)} for _ in range(2))
    broken["q.lora_B.weight"] = torch.full((4, 2), bad)
    for points in ((good, broken), (broken, good)):
        with pytest.raises(UserError, match=r"NaN or ∞ in 'q.lora_B.weight' of point"):
            mc.Linear(*points, space="aligned")
        with pytest.raises(UserError, match="NaN or ∞"):
            weight_distance(*points, space="aligned")


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("scale", [1e80, 1e-80, 1e150, 1e-150])
def test_cka_has_no_unit(scale, unbiased):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    y = x @ rng.normal(size=(5, 4)) + rng.normal(size=(40, 4))
    plain, scaled = CKA(unbiased), CKA(unbiased)
    for rows in (slice(0, 20), slice(20, 40)):
        plain.update(x[rows], y[rows])
        scaled.update(scale * x[rows], y[rows] / scale)
    assert scaled.value() == pytest.approx(plain.value(), rel=1e-9)
    assert scaled.standard_error() == pytest.approx(plain.standard_error(), rel=1e-9, nan_ok=True)


def test_cka_takes_tensors_of_any_precision():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_(True)
    assert linear_cka(x, x) == 1.0
    assert linear_cka(x, 2 * x.detach().double().numpy()) == pytest.approx(1.0, rel=1e-12)
