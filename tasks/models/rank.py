"""Matrices of a planted rank, and the row echelon form that finds it.

A = U diag(s) V' with r singular values from 1 down to 1 / condition, evenly spaced on a log scale.

Shapes: B batch, M rows, N columns, R rank.
"""

import math

import torch

TOLERANCE = 1e-10


def orthonormal(*shape: int) -> torch.Tensor:
    """Random matrices with orthonormal columns, (..., M, N) with M >= N."""
    return torch.linalg.qr(torch.randn(*shape, dtype=torch.float64))[0]


def planted(
    batch: int, m: int, n: int, r: int, condition: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``batch`` matrices A of rank r and bases of their column spaces: A_BMN, U_BMR."""
    U_BMR, V_BNR = orthonormal(batch, m, r), orthonormal(batch, n, r)
    s_R = torch.logspace(0, -math.log10(condition), r, dtype=torch.float64)
    return U_BMR * s_R @ V_BNR.mT, U_BMR


def reduced_echelon(
    A_BMN: torch.Tensor, tolerance: float, columns: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gauss-Jordan elimination with row pivoting, in batches.

    Args:
        A_BMN: the matrices, float64.
        tolerance: an entry up to this share of the matrix's largest counts as zero.
        columns: how many may have a pivot, all when None; [A b] has one more than it may use.

    Returns:
        The reduced form R_BMN, pivot rows first; whether a column has a pivot, (B, columns); and
        the row of its pivot, (B, columns), 0 where it has none.
    """
    R = A_BMN.clone()
    batch, m, n = *R.shape[:2], columns or R.shape[2]
    every = torch.arange(batch, device=R.device)
    zero = tolerance * R[:, :, :n].abs().amax((1, 2))
    rank = torch.zeros(batch, dtype=torch.long, device=R.device)
    is_pivot = torch.zeros(batch, n, dtype=torch.bool, device=R.device)
    row_of = torch.zeros(batch, n, dtype=torch.long, device=R.device)
    row = torch.arange(m, device=R.device)
    for j in range(n):
        size, i = torch.where(row >= rank[:, None], R[:, :, j].abs(), -1.0).max(1)
        found = size > zero
        at = torch.where(found, rank, 0)
        i = torch.where(found, i, at)
        R[every, at], R[every, i] = R[every, i], R[every, at]
        R[every, at] /= torch.where(found, R[every, at, j], 1.0)[:, None]
        factor = torch.where(found[:, None] & (row != at[:, None]), R[:, :, j], 0.0)
        R -= factor[:, :, None] * R[every, at][:, None]
        is_pivot[:, j], row_of[:, j] = found, at
        rank = rank + found
    return R, is_pivot, row_of
