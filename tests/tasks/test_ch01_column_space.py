import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.ch01_linear_algebra import column_space
from tasks.models import rank

METHODS = sorted(column_space.METHODS)
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 7))


def matrices(*rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("A", "expected"),
    [
        ([[1, 2], [2, 4]], 1),
        ([[1, 2], [2, 5]], 2),
        ([[0, 0], [0, 3]], 1),
        ([[0, 0], [0, 0]], 0),
        ([[0, 1, 2], [0, 2, 4]], 1),
        ([[0, 0, 1], [0, 2, 1], [0, 4, 2], [0, 0, 3]], 2),
    ],
)
def test_ranks_that_can_be_seen(method, A, expected):
    Q_BMK, rank_B = column_space.METHODS[method](matrices(A), rank.TOLERANCE)
    assert rank_B.tolist() == [expected]
    assert torch.linalg.matrix_rank(Q_BMK).tolist() == [expected]


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 99), st.sampled_from(METHODS))
def test_the_basis_is_orthonormal_and_spans_the_columns(shape, seed, method):
    torch.manual_seed(seed)
    m, n = shape
    r = 1 + seed % min(m, n)
    A_BMN, U_BMR = rank.planted(3, m, n, r, 1e3)
    Q_BMK, rank_B = column_space.METHODS[method](A_BMN, rank.TOLERANCE)
    assert rank_B.tolist() == [r] * 3
    # For Gram-Schmidt too all columns that are not zero come first.
    gram = Q_BMK.mT @ Q_BMK
    expected = torch.diag((torch.arange(min(m, n)) < r).double()).expand_as(gram)
    torch.testing.assert_close(gram, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(Q_BMK @ Q_BMK.mT, U_BMR @ U_BMR.mT, atol=1e-9, rtol=0)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_the_rank_of_small_integer_matrices_agrees_with_lapack(shape, seed):
    A = np.random.default_rng(seed).integers(-1, 2, (5, *shape)).astype(float)
    expected = [int(np.linalg.matrix_rank(a)) for a in A]
    for method in METHODS:
        found = column_space.METHODS[method](torch.from_numpy(A), rank.TOLERANCE)[1]
        assert found.tolist() == expected, method


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 99))
def test_the_echelon_form_is_reduced_and_equivalent(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randint(-2, 3, (4, *shape), generator=generator).double()
    R, is_pivot, row_of = rank.reduced_echelon(A, 1e-12)
    for a, r, pivots, rows in zip(A, R, is_pivot, row_of, strict=True):
        columns = pivots.nonzero()[:, 0]
        assert rows[columns].tolist() == list(range(len(columns)))
        torch.testing.assert_close(r[:, columns], torch.eye(len(r)).double()[:, : len(columns)])
        assert (r[len(columns) :].abs() < 1e-9).all()
        # Row operations keep the relations between the columns.
        torch.testing.assert_close(a[:, columns] @ r[: len(columns)], a, atol=1e-9, rtol=0)


def test_a_right_hand_side_gets_no_pivot():
    R, is_pivot, _ = rank.reduced_echelon(matrices([[1.0, 0, 5], [0, 0, 3]]), 1e-12, columns=2)
    assert is_pivot.tolist() == [[True, False]]
    assert R[0, 1, 2] == 3


def test_exact_zeros_only_miss_the_rank_of_a_product():
    torch.manual_seed(0)
    A_BMN, _ = rank.planted(20, 8, 8, 4, 10.0)
    assert rank.reduced_echelon(A_BMN, 0.0)[1].sum(1).max() > 4
    assert (rank.reduced_echelon(A_BMN, rank.TOLERANCE)[1].sum(1) == 4).all()


def test_share_outside_and_angle():
    Q = torch.eye(3, dtype=torch.float64)[None, :, :2]
    b = matrices([3.0, 0.0, 4.0])
    torch.testing.assert_close(column_space.share_outside(Q, b), torch.tensor([0.8]).double())
    turned = matrices([[1.0, 0], [0, 0.6], [0, 0.8]])
    torch.testing.assert_close(column_space.angle(Q, turned), torch.tensor([0.8]).double())
