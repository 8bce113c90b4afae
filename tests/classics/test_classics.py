"""The classic results on tiny settings: training, sharing, rules that decide, tables and refusals."""

import builtins
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

import mcanalysis as mc
from mcanalysis.classics import claims_cells, classic_names, digits, reproduce_classics, study
from mcanalysis.classics.ainsworth import AINSWORTH, COPY, COPY_DISTANCE, COPY_MATCHED, measure_ainsworth
from mcanalysis.classics.ainsworth import Settings as AinsworthSettings
from mcanalysis.classics.classic import HIGH, Claim, Classic, Measured, judge, with_means
from mcanalysis.classics.frankle import FIRST, FRANKLE, LAST, measure_frankle
from mcanalysis.classics.frankle import Settings as FrankleSettings
from mcanalysis.classics.garipov import CURVE, GARIPOV, LINE, measure_garipov
from mcanalysis.classics.garipov import Settings as GaripovSettings
from mcanalysis.classics.jordan import JORDAN, SHARE, VARIANCE, measure_jordan, new_network, permutations_of
from mcanalysis.classics.jordan import Settings as JordanSettings
from mcanalysis.classics.mirzadeh import (
    FIRST_ANCESTOR,
    FIRST_TO_BOTH,
    FIRST_TO_SECOND,
    MIRZADEH,
    SECOND_ANCESTOR,
    measure_mirzadeh,
)
from mcanalysis.classics.mirzadeh import Settings as MirzadehSettings
from mcanalysis.errors import UserError
from mcanalysis.metrics.over_seeds import student_interval
from mcanalysis.params import content_hash
from mcanalysis.plotting.classics import Panel, plot_classic
from mcanalysis.symmetry import permute, random_permutations

SHORT = digits.Recipe(num_steps=150, batch_size=32)
TINY = {
    GARIPOV: lambda seeds: measure_garipov(seeds, GaripovSettings(hidden=(12,), recipe=SHORT, curve_steps=100)),
    FRANKLE: lambda seeds: measure_frankle(
        seeds, FrankleSettings(hidden=(12,), recipe=SHORT, shared_steps=(0, 50, 150))
    ),
    MIRZADEH: lambda seeds: measure_mirzadeh(seeds, MirzadehSettings(hidden=(24,), recipe=SHORT)),
    AINSWORTH: lambda seeds: measure_ainsworth(
        seeds, AinsworthSettings(widths=(8, 32), num_hidden=1, copy_width=8, recipe=SHORT)
    ),
    JORDAN: lambda seeds: measure_jordan(
        seeds, JordanSettings(hidden=(16, 16), recipe=digits.Recipe(num_steps=60, batch_size=32), num_points=3)
    ),
}


@pytest.fixture(scope="module")
def data():
    return digits.load_digits()


def test_the_split_is_scikit_learns_digits_once_each_and_fixed(data):
    from sklearn.datasets import load_digits

    train, test = data
    assert (len(train), len(test)) == (1297, 500)
    inputs = torch.cat([train.inputs, test.inputs]) * 16
    raw = load_digits()
    assert sorted(map(tuple, inputs.int().tolist())) == sorted(map(tuple, raw.data.astype(int).tolist()))
    by_image = {tuple(x): y for x, y in zip(raw.data.astype(int).tolist(), raw.target, strict=True)}
    assert all(
        by_image[tuple(x)] == y for x, y in zip((test.inputs * 16).int().tolist(), test.labels.tolist(), strict=True)
    )
    assert content_hash({"x": digits.load_digits.__wrapped__()[1].inputs}) == content_hash({"x": test.inputs})


def test_turned_digits_are_numpys_rot90(data):
    turned = data[1].rotated()
    for i in (0, 7):
        image = np.rot90(data[1].inputs[i].numpy().reshape(8, 8))
        np.testing.assert_array_equal(turned.inputs[i].numpy().reshape(8, 8), image)
    assert torch.equal(turned.labels, data[1].labels)


def test_networks_trained_at_once_are_those_of_an_ordinary_loop(data):
    """An oracle in plain PyTorch: one nn.Sequential, one optimiser, its own schedule."""
    train, _ = data
    recipe = digits.Recipe(num_steps=12, batch_size=16, learning_rate=0.1)
    starts = [digits.new_network([7, 5], seed) for seed in (3, 4)]
    orders = [digits.batches(train, recipe, seed) for seed in (5, 6)]
    found = digits.train_networks(starts, train, orders, recipe)
    for start, order, result in zip(starts, orders, found, strict=True):
        net = nn.Sequential(nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 10))
        named = {"0": net[0], "1": net[2], "2": net[4]}
        for name, layer in named.items():
            layer.weight.data.copy_(start[f"{name}.weight"])
            layer.bias.data.copy_(start[f"{name}.bias"])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
        for chosen in order:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(train.inputs[chosen]), train.labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        for name, layer in named.items():
            torch.testing.assert_close(result[f"{name}.weight"], layer.weight.detach(), rtol=1e-4, atol=1e-5)
        measured = digits.measure(result, train)
        with torch.no_grad():
            outputs = net(train.inputs)
        assert measured.loss == pytest.approx(float(nn.functional.cross_entropy(outputs, train.labels)), rel=1e-4)
        assert measured.score == pytest.approx(float((outputs.argmax(1) == train.labels).double().mean()), abs=2e-3)


def test_training_leaves_starts_and_the_global_random_state_alone(data):
    start = digits.new_network([6], 0)
    kept, state = content_hash(start), torch.random.get_rng_state()
    recipe = digits.Recipe(num_steps=3)
    (first,) = digits.train_networks([start], data[0], [digits.batches(data[0], recipe, 1)], recipe)
    assert content_hash(start) == kept != content_hash(first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_epoch_shows_every_example_once(data):
    train, _ = data
    order = digits.batches(train, digits.Recipe(num_steps=100, batch_size=32), 0).flatten()
    for epoch in range(2):
        assert sorted(order[epoch * len(train) : (epoch + 1) * len(train)].tolist()) == list(range(len(train)))


def test_runs_that_share_all_steps_are_one_run_and_part_after_k(data):
    measured = measure_frankle([7], FrankleSettings(hidden=(8,), recipe=SHORT, shared_steps=(0, 150)))
    values = measured.values.set_index("measure").value
    assert values[LAST] == 0.0 < values[FIRST]


def test_weights_that_blow_up_are_refused(data):
    recipe = digits.Recipe(num_steps=60, learning_rate=1e30)
    with pytest.raises(UserError, match=r"not finite at learning rate .*; lower"):
        digits.train_networks([digits.new_network([6])], data[0], [digits.batches(data[0], recipe, 0)], recipe)


def test_a_digits_network_works_with_the_general_functions(data):
    a, b = digits.new_network([6], 0), digits.new_network([6], 1)
    line = mc.profile(mc.Linear(a, b), digits.objective(data[1]), ts=[0, 0.5, 1])
    low, high = line.chord_barrier_interval()
    assert low <= line.chord_barrier() <= high


@pytest.mark.parametrize("classic", TINY, ids=lambda c: c.name)
def test_tiny_settings_give_whole_tables(classic):
    measured = TINY[classic]([0, 1])
    measures = set(measured.values.measure)
    assert {claim.measure for claim in classic.claims} <= measures
    assert len(measured.values) == 2 * len(measures) and measured.values.value.notna().all()
    assert set(measured.curves.panel) == set(classic.panels)
    again = TINY[classic]([1])  # a seed gives the same numbers alone as beside others
    alone = again.values.set_index("measure").value
    beside = measured.values[measured.values.seed == 1].set_index("measure").value
    # Equal to the bit where this was written; another BLAS may round batches of other sizes otherwise.
    assert (alone - beside).abs().max() < 0.01
    figure = plot_classic(with_means(measured.curves), classic.panels)
    assert [axes.get_title() for axes in figure.axes] == [panel.title for panel in classic.panels.values()]
    figure.canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    spans = []
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.get_legend().get_texts()]
        assert all(b.x0 > 0 and b.y0 > 0 and b.y1 < height for b in boxes)
        spans.append((axes.get_window_extent().x0, max(b.x1 for b in boxes)))
    starts = [*(left for left, _ in spans[1:]), width]  # a legend ends before the next panel begins
    assert all(end < start for (_, end), start in zip(spans, starts, strict=True))


def test_even_tiny_settings_show_a_curve_below_the_line_and_an_exact_match():
    garipov = TINY[GARIPOV]([0]).values.set_index("measure").value
    assert garipov[CURVE] < 0.5 * garipov[LINE]
    ainsworth = TINY[AINSWORTH]([0]).values.set_index("measure").value
    assert ainsworth[COPY] > 0.1 and ainsworth[COPY_MATCHED] < 1e-6 and ainsworth[COPY_DISTANCE] == 0.0
    mirzadeh = TINY[MIRZADEH]([0]).values.set_index("measure").value
    assert mirzadeh[FIRST_TO_BOTH] < mirzadeh[FIRST_TO_SECOND]
    assert mirzadeh[FIRST_ANCESTOR] > 0.1 and mirzadeh[SECOND_ANCESTOR] > 0.1


def test_permuting_a_network_with_batchnorm_and_its_statistics_changes_no_output():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = new_network([7, 5]).double()
        net(3 * torch.randn(30, 64, dtype=torch.float64) + 1)
    point, spec, x = mc.snapshot(net), permutations_of(2), torch.randn(9, 64, dtype=torch.float64)
    moved = permute(point, spec, random_permutations(point, spec, 1))
    assert content_hash(moved) != content_hash(point)
    outputs = [torch.func.functional_call(net.eval(), p, (x,)) for p in (point, moved)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_variance_collapses_between_deep_networks_and_re_estimating_lowers_the_barrier():
    values = measure_jordan([100], JordanSettings(num_points=5)).values.set_index("measure").value
    assert values[VARIANCE] < 0.5 and values[SHARE] > 0.3


def test_the_interval_is_scipys_of_a_one_sample_t_test():
    values = [0.3, 0.1, 0.5, 0.2, 0.9]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    mean, low, high = student_interval(values)
    assert (mean, low, high) == pytest.approx((0.4, expected.low, expected.high), rel=1e-12)
    assert all(math.isnan(end) for end in student_interval([0.3])[1:])


@pytest.mark.parametrize(
    ("values", "side", "verdict"),
    [
        ([0.5, 0.6, 0.7], "above", "seen"),
        ([0.5, 0.6, 0.7], "below", "not seen"),
        ([0.0, 0.01, 0.02], "below", "seen"),
        ([0.0, 0.3, 0.9], "above", "not seen"),  # the mean lies above, the interval does not
        ([0.9], "above", "undecided"),
    ],
)
def test_verdicts_follow_the_interval(values, side, verdict):
    classic = Classic("x", "nobody 2020", (Claim("…", "m", side, HIGH),), lambda seeds: None, {})
    table = pd.DataFrame({"measure": "m", "seed": range(len(values)), "value": values})
    assert judge(classic, table).verdict.item() == verdict


def made_up(seeds):
    """Measurements of what is the case by construction: y = seed + x."""
    values = [{"measure": "m", "seed": s, "value": 1.0 + 0.01 * s} for s in seeds]
    curves = [{"panel": "p", "series": "s", "seed": s, "x": x, "y": s + x} for s in seeds for x in (0.0, 0.5, 1.0)]
    return Measured(pd.DataFrame(values), pd.DataFrame(curves))


@pytest.fixture
def one_classic(monkeypatch):
    """A study of one made-up result, `known`."""
    claims = (Claim("It is so.", "m", "above", 0.5), Claim("It is not so.", "m", "below", 0.5, ""))
    known = Classic("known", "nobody 2020", claims, made_up, {"p": Panel("title", "x (steps)", "y (nats)")})
    monkeypatch.setattr(study, "CLASSICS", {"known": known})
    return known


def test_tables_and_figures_are_written_and_tell_the_numbers(one_classic, tmp_path):
    result = reproduce_classics("all", [0, 1, 2], tmp_path / "out")
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "classics.csv", "classics.md", "known.pdf", "known.png",
    ]  # fmt: skip
    written = pd.read_csv(tmp_path / "out" / "classics.csv")
    assert list(written.columns) == ["result", "measure", "seed", "value"]
    assert written.value.tolist() == [1.0, 1.01, 1.02]
    text = (tmp_path / "out" / "classics.md").read_text()
    assert "| known | It is so. | m | 1.01 [0.985, 1.03] nats | interval above 0.5 nats | seen |" in text
    assert "| interval below 0.5 | not seen |" in text and "- known: nobody 2020" in text and "3 seeds" in text
    assert len(claims_cells(result.claims)) == 3


def test_one_seed_has_no_interval_and_no_verdict(one_classic, tmp_path):
    result = reproduce_classics("known", [4], tmp_path)
    assert set(result.claims.verdict) == {"undecided"}
    assert "1.04 [–, –] nats" in (tmp_path / "classics.md").read_text()


def test_the_figure_draws_every_seed_and_the_mean():
    figure = plot_classic(with_means(made_up([0, 1]).curves), {"p": Panel("title", "x", "y")})
    lines = {line.get_gid(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"s seed 0": [0.0, 0.5, 1.0], "s seed 1": [1.0, 1.5, 2.0], "s mean": [0.5, 1.0, 1.5]}
    figure.canvas.draw()
    extents = [t.get_window_extent() for t in figure.axes[0].get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(extents))


@pytest.mark.parametrize(
    ("panels", "rename", "message"),
    [
        ({"q": Panel("", "", "")}, {}, "panel 'q' in the table curves, got none"),
        ({"p": Panel("", "", "")}, {"mean": "median"}, "column.*mean"),
    ],
)
def test_figures_of_other_tables_are_refused(panels, rename, message):
    with pytest.raises(UserError, match=message):
        plot_classic(with_means(made_up([0]).curves).rename(columns=rename), panels)


@pytest.mark.parametrize(
    ("result", "seeds", "message"),
    [
        ("garipow", [0], "Unknown classic result 'garipow'. Did you mean 'garipov'"),
        ("garipov", [], "one or more different seeds"),
        ("garipov", [1, 1], r"got \[1, 1\]"),
        ("garipov", [-1], r"got \[-1\]"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(result, seeds, message, tmp_path):
    with pytest.raises(UserError, match=message):
        reproduce_classics(result, seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_scikit_learn_the_extra_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    digits.load_digits.cache_clear()
    with pytest.raises(UserError, match=r"scikit-learn .* pip install 'mcanalysis\[classics\]'"):
        reproduce_classics("garipov", [0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_page_of_docs_runs_as_it_stands():
    page = (Path(__file__).parents[2] / "docs" / "classics.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names: dict = {}
    with torch.random.fork_rng():
        exec(block, names)
    x = torch.randn(5, 64, dtype=torch.float64)
    before, after = (torch.func.functional_call(names["net"], names[point], (x,)) for point in ("b", "b_in_order"))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


def test_all_are_there():
    assert classic_names() == ["garipov", "frankle", "mirzadeh", "ainsworth", "jordan"]
