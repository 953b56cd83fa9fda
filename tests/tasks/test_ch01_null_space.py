import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.ch01_linear_algebra import null_space
from tasks.models.rank import planted

METHODS = sorted(null_space.METHODS)


def test_special_solutions_that_can_be_found_by_hand():
    A = torch.tensor([[[1.0, 2, 0, 3], [0, 0, 1, 4]]], dtype=torch.float64)
    b = torch.tensor([[5.0, 6]], dtype=torch.float64)
    basis, x = null_space.eliminated(A, b)
    assert x.tolist() == [[5, 0, 6, 0]]
    expected = torch.zeros(4, 4).double()
    expected[:, 1] = torch.tensor([-2, 1, 0, 0])
    expected[:, 3] = torch.tensor([-3, 0, -4, 1])
    torch.testing.assert_close(basis[0], expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 99), st.sampled_from(METHODS))
def test_rank_and_nullity_and_all_solutions(m, n, seed, method):
    torch.manual_seed(seed)
    r = 1 + seed % min(m, n)
    A, _ = planted(3, m, n, r, 1e3)
    b = (A @ torch.randn(3, n, 1).double())[..., 0]
    basis, x = null_space.METHODS[method](A, b)
    Z = null_space.scaled(basis)
    assert null_space.independent(Z).tolist() == [n - r] * 3
    assert null_space.null_residual(A, Z).max() < 1e-12
    assert null_space.backward_error(A, x, b).max() < 1e-12
    other = x + (Z @ torch.randn(3, n, 1).double())[..., 0]
    assert null_space.backward_error(A, other, b).max() < 1e-12


def test_the_particular_solution_of_svd_is_the_shortest():
    torch.manual_seed(1)
    A, _ = planted(4, 5, 7, 3, 100.0)
    b = (A @ torch.randn(4, 7, 1).double())[..., 0]
    _, x = null_space.singular(A, b)
    torch.testing.assert_close(x, (torch.linalg.pinv(A, rtol=1e-10) @ b[..., None])[..., 0])


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_of_full_column_rank_has_no_null_vector_and_a_zero_matrix_only_such(method):
    basis, _ = null_space.METHODS[method](torch.eye(3).double()[None], torch.ones(1, 3).double())
    assert not basis.any()
    basis, x = null_space.METHODS[method](torch.zeros(1, 2, 3).double(), torch.zeros(1, 2).double())
    assert null_space.independent(null_space.scaled(basis)).tolist() == [3]
    assert not x.any()


def test_dependent_vectors_do_not_count_twice():
    v = torch.tensor([[[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]]).double()
    assert null_space.independent(null_space.scaled(v)).tolist() == [1]


def test_the_backward_error_of_a_wrong_solution():
    eye = torch.eye(2).double()[None]
    x, b = torch.tensor([[3.0, 4]]).double(), torch.tensor([[0.0, 0]]).double()
    expected = 5 / (2**0.5 * 5)
    assert null_space.backward_error(eye, x, b).item() == pytest.approx(expected)
