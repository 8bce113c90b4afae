"""Eigenvalues, trace and spectral density of operators against NumPy's dense answers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.landscape.eigenvalues import eigenvalues
from mcanalysis.landscape.hessian import HessianOperator
from mcanalysis.landscape.spectral_density import SpectralDensity, spectral_density
from mcanalysis.landscape.trace import trace


def spectrum_like_a_network(size=80, seed=0):
    """A symmetric matrix with a bulk about zero and outliers on both sides."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    values = np.concatenate([[60.0, 45.0, 31.0, 25.0, -29.0, -19.0], 0.3 * rng.standard_normal(size - 6)])
    return (basis * values) @ basis.T


@pytest.mark.parametrize("which", ["top", "bottom", "both"])
def test_eigenvalues_against_numpy(which):
    matrix = spectrum_like_a_network()
    dense = np.linalg.eigvalsh(matrix)[::-1]
    expected = {"top": dense[:4], "bottom": dense[-4:], "both": np.r_[dense[:4], dense[-4:]]}[which]
    found = eigenvalues(aslinearoperator(matrix), 4, which, tolerance=1e-10)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    np.testing.assert_allclose(matrix @ found.vectors, found.vectors * found.values, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=0), 1.0)


def test_loose_tolerance_keeps_its_promise_and_reports_true_residuals():
    matrix = spectrum_like_a_network(200, seed=1)
    dense = np.linalg.eigvalsh(matrix)
    found = eigenvalues(aslinearoperator(matrix), 3, "both", tolerance=0.01)
    actual = np.linalg.norm(matrix @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, actual, atol=1e-12)
    nearest = np.abs(dense[None, :] - found.values[:, None]).min(axis=1)
    assert (nearest <= found.residuals + 1e-12).all()
    assert (found.residuals <= 0.01 * np.abs(found.values) + 1e-12).all()


def test_products_are_counted_and_the_seed_decides():
    calls = []
    matrix = spectrum_like_a_network()

    class Watched:
        shape, dtype = matrix.shape, matrix.dtype

        def matvec(self, x):
            calls.append(1)
            return matrix @ x

    first = eigenvalues(Watched(), 3, tolerance=1e-6)
    assert first.num_products == len(calls)
    again = eigenvalues(Watched(), 3, tolerance=1e-6)
    assert np.array_equal(first.values, again.values) and np.array_equal(first.vectors, again.vectors)
    assert not np.array_equal(eigenvalues(Watched(), 3, tolerance=1e-6, seed=1).vectors, first.vectors)


def test_eigenvalues_bad_arguments():
    operator = aslinearoperator(np.diag(np.arange(5.0)))
    with pytest.raises(UserError, match="fewer eigenvalues than the 5 coordinates of the point, got 5"):
        eigenvalues(operator, 5)
    with pytest.raises(UserError, match="got 6"):
        eigenvalues(operator, 3, "both")
    with pytest.raises(UserError, match="at least 1"):
        eigenvalues(operator, 0)
    with pytest.raises(UserError, match="positive tolerance"):
        eigenvalues(operator, 1, tolerance=0.0)
    with pytest.raises(UnknownNameError, match="Did you mean 'bottom'"):
        eigenvalues(operator, 1, "botom")
    hard = aslinearoperator(np.diag(np.linspace(0, 1, 3000)))
    with pytest.raises(UserError, match=r"Expected 10 eigenvalues .* got \d+ after \d+ products"):
        eigenvalues(hard, 10, tolerance=1e-12, max_restarts=1)


@pytest.mark.parametrize(("method", "num_samples"), [("hutchinson", 30), ("hutch++", 30)])
def test_trace_is_unbiased_and_its_error_is_the_spread_of_the_estimates(method, num_samples):
    matrix = spectrum_like_a_network(40)
    estimates = [trace(aslinearoperator(matrix), num_samples, method, seed) for seed in range(300)]
    values = np.array([e.value for e in estimates])
    spread = values.std(ddof=1)
    assert abs(values.mean() - np.trace(matrix)) < 4 * spread / math.sqrt(len(values))
    mean_square = np.mean([e.standard_error**2 for e in estimates])
    assert mean_square == pytest.approx(spread**2, rel=0.35)
    assert {e.num_products for e in estimates} == {num_samples}


def test_hutchinson_variance_is_that_of_random_signs():
    """Var zᵀHz = 2·Σ_{i≠j} H_ij² for signs; Gaussian probes would add the diagonal's share."""
    matrix = spectrum_like_a_network(30, seed=2) + np.diag(np.linspace(0, 200, 30))
    estimates = np.array([trace(aslinearoperator(matrix), 2, seed=s).value for s in range(2000)])
    expected = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 2
    assert estimates.var() == pytest.approx(expected, rel=0.15)


def test_hutchplusplus_is_exact_for_low_rank_and_better_with_outliers():
    rng = np.random.default_rng(0)
    thin = rng.standard_normal((60, 4))
    found = trace(aslinearoperator(thin @ thin.T), 15, "hutch++")
    assert found.value == pytest.approx(np.sum(thin**2), rel=1e-10)
    assert found.standard_error < 1e-8 * found.value
    assert trace(aslinearoperator(np.eye(3)), 30, "hutch++").value == pytest.approx(3.0)  # more samples than columns
    matrix = spectrum_like_a_network(60)
    errors = {
        m: np.std([trace(aslinearoperator(matrix), 30, m, s).value for s in range(60)])
        for m in ("hutchinson", "hutch++")
    }
    assert errors["hutch++"] < 0.2 * errors["hutchinson"]


def test_trace_bad_arguments():
    operator = aslinearoperator(np.eye(3))
    with pytest.raises(UnknownNameError, match="Did you mean 'hutchinson'"):
        trace(operator, 5, "hutchison")
    with pytest.raises(UserError, match="at least 6"):
        trace(operator, 5, "hutch++")
    with pytest.raises(UserError, match="at least 2"):
        trace(operator, 1)


def test_quadrature_is_exact_for_its_probe():
    """With m steps, moments up to 2m − 1 of one probe are zᵀHᵏz: Gauss quadrature."""
    matrix = spectrum_like_a_network(50) / 20
    probe = np.random.default_rng(5).choice((-1.0, 1.0), 50)
    found = spectral_density(aslinearoperator(matrix), num_probes=1, num_lanczos=6, seed=5)
    for power in range(12):
        exact = probe @ np.linalg.matrix_power(matrix, power) @ probe
        assert found.moment(power) == pytest.approx(exact, rel=1e-9, abs=1e-9)
    beyond = probe @ np.linalg.matrix_power(matrix, 12) @ probe
    assert found.moment(12) != pytest.approx(beyond, rel=1e-9)


def test_moments_against_traces_and_outliers_are_nodes():
    matrix = spectrum_like_a_network(60)
    found = spectral_density(aslinearoperator(matrix), num_probes=200, num_lanczos=20)
    assert found.weights.sum() == pytest.approx(1.0)
    for power, exact in ((1, np.trace(matrix)), (2, np.trace(matrix @ matrix))):
        terms = [
            spectral_density(aslinearoperator(matrix), 1, 20, seed).moment(power) for seed in range(40)
        ]  # of single probes, to know how far off 200 may be
        assert found.moment(power) == pytest.approx(exact, abs=4 * np.std(terms) / math.sqrt(200))
    top = np.linalg.eigvalsh(matrix)[-1]
    assert found.nodes.max() == pytest.approx(top, rel=1e-8)


def test_full_reorthogonalisation_makes_no_ghosts():
    """Without it the outliers come back several times when the iteration is long."""
    matrix = np.diag(np.concatenate([[1000.0, 500.0], np.linspace(-1, 1, 298)]))
    found = spectral_density(aslinearoperator(matrix), num_probes=1, num_lanczos=150)
    assert np.sum(found.nodes > 100) == 2
    assert found.nodes[-2:] == pytest.approx([500.0, 1000.0])


def test_an_exhausted_krylov_space_stops_early():
    matrix = np.diag([2.0] * 5 + [7.0] * 5)
    found = spectral_density(aslinearoperator(matrix), num_probes=1, num_lanczos=8)
    np.testing.assert_allclose(found.nodes, [2.0, 7.0])
    np.testing.assert_allclose(found.weights, [0.5, 0.5])
    assert found.num_products == 2
    zero = spectral_density(aslinearoperator(np.zeros((4, 4))), 2, 3)
    assert zero.nodes.tolist() == [0.0, 0.0] and zero.moment(1) == 0.0


def test_density_is_the_smoothed_histogram_of_the_eigenvalues():
    matrix = spectrum_like_a_network(40)
    eigen = np.linalg.eigvalsh(matrix)
    found = spectral_density(aslinearoperator(matrix), 150, 40)
    width = 5.0
    at = np.linspace(-60, 90, 151)
    exact = np.mean(np.exp(-0.5 * ((at[:, None] - eigen) / width) ** 2), axis=1) / (width * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(found.density(at, width), exact, atol=0.1 * exact.max())
    assert np.trapezoid(found.density(at, width), at) == pytest.approx(1.0, abs=1e-6)
    grid = found.grid(4096)
    assert np.trapezoid(found.density(grid), grid) == pytest.approx(1.0, abs=1e-3)


@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_quadrature_properties(size, steps, seed):
    matrix = np.random.default_rng(seed).standard_normal((size, size))
    matrix = matrix + matrix.T
    found = spectral_density(aslinearoperator(matrix), 2, steps, seed)
    eigen = np.linalg.eigvalsh(matrix)
    assert found.weights.sum() == pytest.approx(1.0)
    assert (found.weights >= -1e-12).all()
    assert found.nodes.min() >= eigen[0] - 1e-8 and found.nodes.max() <= eigen[-1] + 1e-8
    if steps >= 2 * size:
        assert found.moment(0) == pytest.approx(size)


def test_density_bad_arguments():
    with pytest.raises(UserError, match="num_probes"):
        spectral_density(aslinearoperator(np.eye(2)), num_probes=0)
    with pytest.raises(UserError, match="num_lanczos"):
        spectral_density(aslinearoperator(np.eye(2)), num_lanczos=0)
    with pytest.raises(UserError, match="positive width"):
        SpectralDensity(np.zeros(1), np.ones(1), 1, 1, 1).density([0.0], width=0.0)


@pytest.mark.parametrize("ask", [eigenvalues, trace, spectral_density])
@pytest.mark.parametrize("given", [lambda vector: vector, "x", np.eye(3)])
def test_what_is_no_operator_is_told_how_to_become_one(ask, given):
    with pytest.raises(UserError, match=r"a linear operator, got a .*HessianOperator.*aslinearoperator"):
        ask(given)


@pytest.mark.parametrize("vector", [np.ones(2), np.ones((2, 3)), {"w": torch.ones(3)}, [1.0]])
def test_a_vector_of_another_length_is_refused_by_the_hessian(vector):
    hessian = HessianOperator(lambda p: (p["w"] ** 3).sum(), {"w": torch.ones(3)})
    with pytest.raises(UserError, match=r"use product\(direction\) for points"):
        hessian @ vector
    assert (hessian @ np.ones(3)).tolist() == (hessian @ [1.0, 1.0, 1.0]).tolist() == [6.0] * 3
    assert (hessian @ np.eye(3)).tolist() == np.diag([6.0] * 3).tolist()
    assert ((2 * hessian) @ np.ones(3)).tolist() == ((hessian @ hessian) @ np.ones(3) / 3).tolist() == [12.0] * 3
