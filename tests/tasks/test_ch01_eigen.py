import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.plan import expand
from suite.run import execute
from tasks.ch01_linear_algebra import eigen


def qr_eigenvalues(A):
    d, e = (entries.tolist() for entries in eigen.householder(torch.as_tensor(A)))
    sweeps = eigen.qr_sweeps(d, e, most=30 * len(A))
    assert sweeps < 30 * len(A)
    assert not any(e)
    return np.sort(d)


def random_symmetric(n, seed):
    A = np.random.default_rng(seed).standard_normal((n, n))
    return A + A.T


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(0, 2**32 - 1), st.sampled_from([1e-8, 1.0, 1e8]))
def test_the_qr_algorithm_agrees_with_lapack(n, seed, scale):
    A = scale * random_symmetric(n, seed)
    np.testing.assert_allclose(
        qr_eigenvalues(A), np.linalg.eigvalsh(A), atol=1e-13 * n * np.abs(A).max()
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.data())
def test_the_qr_algorithm_holds_on_small_integer_matrices(n, data):
    entry = st.integers(-3, 3)
    A = np.array(data.draw(st.lists(entry, min_size=n * n, max_size=n * n)), float).reshape(n, n)
    A = np.triu(A) + np.triu(A, 1).T
    np.testing.assert_allclose(qr_eigenvalues(A), np.linalg.eigvalsh(A), atol=1e-12)


@pytest.mark.parametrize(
    "A",
    [
        [[3.0]],
        [[0.0]],
        [[0.0, 1.0], [1.0, 0.0]],
        np.zeros((5, 5)),
        np.eye(6),
        np.diag([3.0, -1.0, 3.0, 0.0]),
        np.ones((7, 7)),
        np.diag(np.ones(9), 1) + np.diag(np.ones(9), -1),
        np.kron(np.eye(3), [[2.0, 1.0], [1.0, 2.0]]),
        np.diag([1e-300, 1.0]) + 1e-200 * (1 - np.eye(2)),
    ],
    ids=["1x1", "zero", "swap", "zeros", "identity", "diagonal", "ones", "path", "blocks", "tiny"],
)
def test_the_qr_algorithm_on_degenerate_matrices(A):
    A = np.array(A)
    np.testing.assert_allclose(qr_eigenvalues(A), np.linalg.eigvalsh(A), atol=1e-13)


def test_wilkinsons_matrix_has_pairs_that_agree_to_many_digits():
    A = np.diag(np.abs(np.arange(-10.0, 11))) + np.diag(np.ones(20), 1) + np.diag(np.ones(20), -1)
    found = qr_eigenvalues(A)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(A), atol=1e-13)
    assert found[-1] == pytest.approx(10.746194182903393, abs=1e-13)


def test_householder_keeps_the_spectrum_and_the_matrix_it_was_given():
    A = torch.as_tensor(random_symmetric(12, 0))
    before = A.clone()
    d, e = eigen.householder(A)
    T = torch.diag(d) + torch.diag(e, 1) + torch.diag(e, -1)
    torch.testing.assert_close(torch.linalg.eigvalsh(T), torch.linalg.eigvalsh(A))
    assert torch.equal(A, before)


def test_a_sweep_is_a_similarity_and_bounded_by_its_block():
    d, e = [4.0, 1.0, 3.0, -2.0, 5.0], [1.0, 0.5, 2.0, 1.0]
    eigen.sweep(d, e, 1, 3)
    assert (d[0], d[4], e[0], e[3]) == (4.0, 5.0, 1.0, 1.0)
    before = np.diag([1.0, 3.0, -2.0]) + np.diag([0.5, 2.0], 1) + np.diag([0.5, 2.0], -1)
    after = np.diag(d[1:4]) + np.diag(e[1:3], 1) + np.diag(e[1:3], -1)
    np.testing.assert_allclose(np.linalg.eigvalsh(after), np.linalg.eigvalsh(before), atol=1e-13)
    assert abs(e[2]) < 0.5


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_the_planted_spectra_are_those_of_the_matrices(n):
    torch.manual_seed(n)
    Q = eigen.orthogonal(n)
    torch.testing.assert_close(Q @ Q.T, torch.eye(n, dtype=Q.dtype))
    A, planted = eigen.symmetric(Q, 0.9)
    assert torch.equal(A, A.T)
    assert eigen.error(torch.linalg.eigvalsh(A), planted) < 1e-13
    assert planted.abs().max() == planted[0] == 1
    if n > 1:
        assert planted.abs().sort(descending=True).values[1] == -planted[1] == 0.9
    B, planted = eigen.nonsymmetric(Q, condition=10.0)
    assert eigen.error(torch.linalg.eigvals(B), planted) < 1e-12
    assert len(planted) == n
    if n >= 4:
        assert planted.imag.abs().max() > 0
        assert not torch.allclose(B, B.T)


def test_the_error_does_not_depend_on_order_and_sees_a_lost_eigenvalue():
    planted = torch.tensor([2.0, 0.5 + 1j, 0.5 - 1j, 0.5], dtype=torch.complex128)
    assert eigen.error(planted[[2, 0, 3, 1]], planted) == 0
    lost = torch.tensor([2.0, 0.5 + 1j, 0.5, 0.5], dtype=torch.complex128)
    assert eigen.error(lost, planted) == pytest.approx(0.5)
    real = torch.tensor([3.0, -1.0, 0.0])
    assert eigen.error(torch.tensor([0.0, 3.0, -1.3]), real) == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [0.5, 0.99])
def test_decay_finds_a_rate_and_gives_one_where_nothing_can_be_fitted(rate):
    steps = list(range(40))
    assert eigen.decay(steps, [3 * rate**s for s in steps], 1e-300) == pytest.approx(rate)
    assert eigen.decay(steps[:2], [1.0, 0.5], 1e-9) == 1.0
    assert eigen.decay(steps, [1e-12] * 40, 1e-9) == 1.0


def smoke(variant, **overrides):
    spec = expand(["ch01.eigen"], profile="smoke", variants=[variant], overrides=overrides)[0]
    return execute(spec, resume=False).train


@pytest.mark.parametrize("ratio", [0.8, 0.95, 0.99])
def test_the_power_iteration_converges_at_the_rate_of_theory(ratio):
    final = {k: v.value for k, v in smoke("power", ratio=ratio, size=30).final.items()}
    assert final["vector_rate"] == pytest.approx(ratio, rel=1e-3)
    assert final["rayleigh_rate"] == pytest.approx(ratio**2, rel=2e-3)
    assert final["vector_error"] == pytest.approx(ratio ** final["step"], rel=1e-3)
    assert final["doubling_error"] < 0.01


def test_the_power_iteration_starts_far_from_the_target_and_is_short_of_it_half_way():
    curve = smoke("power").curve["eigenvalue_error"]
    assert curve[0] > 0.1
    assert curve[len(curve) // 2] > 1e-6 > curve[-1]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("variant", ["qr", "eigh", "eig"])
def test_the_smallest_matrices(variant, n):
    final = smoke(variant, size=n).final
    assert final["eigenvalue_error"].value < 1e-14
    assert math.isfinite(final["step"].value)
