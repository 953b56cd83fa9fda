"""The null space: its basis by elimination and SVD, and all solutions of A x = b.

Section "The Null Space". The book defines it, the z with A z = 0, and has no listing and no
figure; the truth is planted. A group of matrices A = U diag(s) V' of a random shape up to `largest`
shares a random rank R and a condition number s_1 / s_R up to `condition`; by the rank-nullity
theorem the null space has N - R dimensions.

- `elimination`: every column without a pivot of the reduced row echelon form is a free variable
  and gives a special solution; the particular solution of A x = b has the free variables at zero.
- `svd`: the right singular vectors behind the rank; the particular solution is the shortest one.

Entries and singular values up to 1e-10 of the largest count as zero.

`rank_nullity` is the share of all `matrices` for which N - R independent null vectors were found,
independent meaning that the smallest singular value of the basis with columns of length one is
above 1e-9; matrices still to come count as misses. `null_residual` is the largest
norm(A Z) / (norm(A) norm(Z)), Z the basis. `solution_error` is the largest backward error,
norm(A x - b) / (norm(A) norm(x) + norm(b)), of x = x_p + Z w with a random w: adding what is in the
null space leaves a solution one. `growth` is the largest entry of a basis vector before it is
scaled: special solutions may be long, singular vectors are not.

Shapes: B batch, M rows, N columns, R rank.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval

from suite.fields import Count
from suite.task import Claim, Target, Task
from tasks.models.rank import TOLERANCE, planted, reduced_echelon

INDEPENDENT = 1e-9


@dataclass(frozen=True)
class Config:
    data: Literal["matrices with a planted null space"] = "matrices with a planted null space"
    method: Literal["elimination", "svd"] = "elimination"
    matrices: Count = 100_000
    group: Count = 5_000
    largest: Count = 64
    condition: Annotated[float, Interval(ge=1)] = 1e6

    def __post_init__(self) -> None:
        if self.matrices % self.group:
            raise ValueError(
                f"matrices={self.matrices} are no multiple of group={self.group}, "
                "and all of a group have one shape"
            )


def eliminated(A_BMN: torch.Tensor, b_BM: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Special solutions and a particular one: basis_BNN (one column a free variable), x_BN.

    The columns of ``basis_BNN`` that belong to variables with a pivot are zero.
    """
    n = A_BMN.shape[2]
    together = torch.cat([A_BMN, b_BM[..., None]], 2)
    R, is_pivot, row_of = reduced_echelon(together, TOLERANCE, n)
    # Row j: what variable j is, if it has a pivot, in terms of the free variables and of b.
    rows_BNP = R.gather(1, row_of[:, :, None].expand(-1, -1, n + 1))
    eye_NN = torch.eye(n, dtype=R.dtype, device=R.device)
    basis_BNN = torch.where(is_pivot[:, :, None], -rows_BNP[:, :, :n], eye_NN)
    return basis_BNN * ~is_pivot[:, None], rows_BNP[:, :, n] * is_pivot


def singular(A_BMN: torch.Tensor, b_BM: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same from A = U S V': the last columns of V, and V S^-1 U' b."""
    U, s, Vh = torch.linalg.svd(A_BMN, full_matrices=True)
    kept = s > TOLERANCE * s[:, :1]
    inverse = torch.where(kept, 1 / s.clamp_min(1e-300), 0.0)
    k = s.shape[1]
    coefficients = inverse * (U.mT[:, :k] @ b_BM[..., None])[..., 0]
    free = torch.arange(A_BMN.shape[2], device=s.device) >= kept.sum(1, keepdim=True)
    return Vh.mT * free[:, None], (Vh.mT[..., :k] @ coefficients[..., None])[..., 0]


METHODS = {"elimination": eliminated, "svd": singular}


def scaled(basis_BNN: torch.Tensor) -> torch.Tensor:
    """Every vector that is not zero at length one."""
    length = torch.linalg.vector_norm(basis_BNN, dim=1, keepdim=True)
    return basis_BNN / torch.where(length > 0, length, 1.0)


def independent(basis_BNN: torch.Tensor) -> torch.Tensor:
    """How many independent directions the columns span."""
    return (torch.linalg.svdvals(basis_BNN) > INDEPENDENT).sum(1)


def null_residual(A_BMN: torch.Tensor, basis_BNN: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.matrix_norm
    size_B = (norm(A_BMN) * norm(basis_BNN)).clamp_min(1e-300)
    return norm(A_BMN @ basis_BNN) / size_B


def backward_error(A_BMN: torch.Tensor, x_BN: torch.Tensor, b_BM: torch.Tensor) -> torch.Tensor:
    """How much A and b must change, as a share, to make x an exact solution."""
    gap_BM = (A_BMN @ x_BN[..., None])[..., 0] - b_BM
    norm = torch.linalg.vector_norm
    size_B = torch.linalg.matrix_norm(A_BMN) * norm(x_BN, dim=1) + norm(b_BM, dim=1)
    return norm(gap_BM, dim=1) / size_B


def draw_line(axes: Any, method: str) -> None:
    """All solutions of two equations that are one: a line beside the null space."""
    A_22 = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    b_2 = torch.tensor([4.0, 8.0], dtype=torch.float64)
    basis_22, x_2 = (t[0] for t in METHODS[method](A_22[None], b_2[None]))
    z_2 = scaled(basis_22[None])[0].sum(1)
    t = torch.linspace(-7, 7, 2)[:, None]
    axes.plot(*(t * z_2).T, color="#0072B2", label="null space: A z = 0")
    axes.plot(*(x_2 + t * z_2).T, color="#D55E00", label="solutions: x_p + z")
    axes.plot(*x_2, "o", color="#D55E00", label=f"particular solution of {method}")
    axes.plot(0, 0, "o", color="#0072B2")
    axes.annotate("", x_2 + 2.5 * z_2, x_2, arrowprops={"arrowstyle": "->", "color": "0.3"})
    axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal", xlim=(-4.5, 5), ylim=(-3, 4.5))
    axes.set_title("$x_1 + 2 x_2 = 4$,  $2 x_1 + 4 x_2 = 8$", size=10)
    axes.legend(fontsize=8, loc="upper right")
    axes.grid(alpha=0.3)


def draw(cfg: Config, history: list[list[float]]) -> Any:
    """A null space in the plane, and what rounding costs group by group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_line(left, cfg.method)
    conditions, residuals, errors = np.array(history).T
    right.loglog(conditions, residuals.clip(1e-18), ".", color="#0072B2", label="A Z = 0")
    right.loglog(conditions, errors.clip(1e-18), "x", ms=4, color="#D55E00", label="A x = b")
    right.axhline(1e-12, color="0.3", lw=1, ls=":", label="claimed")
    right.axhline(2.0**-53, color="0.3", lw=1, ls="--", label="unit roundoff")
    right.set(xlabel="condition number", ylabel="relative residual, worst of a group")
    right.set_title(f"{cfg.method}, matrices up to {cfg.largest} x {cfg.largest}", size=10)
    right.legend(fontsize=8, loc="center left")
    right.grid(alpha=0.3)
    return figure


def judge(method: str, A_BMN: torch.Tensor, rank: int) -> dict[str, float]:
    """What a group's matrices have to show, as a sum and maxima."""
    B, _, N = A_BMN.shape
    b_BM = (A_BMN @ torch.randn(B, N, 1).to(A_BMN))[..., 0]
    basis_BNN, x_BN = METHODS[method](A_BMN, b_BM)
    Z_BNN, w_BN1 = scaled(basis_BNN), torch.randn(B, N, 1).to(A_BMN)
    other_BN = x_BN + (Z_BNN @ w_BN1)[..., 0]
    return {
        "hits": float((independent(Z_BNN) == N - rank).sum()),
        "residual": float(null_residual(A_BMN, Z_BNN).max()),
        "error": float(backward_error(A_BMN, other_BN, b_BM).max()),
        "growth": float(basis_BNN.abs().max()),
    }


def run(cfg: Config, ctx: Any) -> Any:
    total = dict.fromkeys(("hits", "residual", "error", "growth"), 0.0)
    history: list[list[float]] = []
    start = ctx.keep(total=total, history=history)

    def scores() -> dict[str, float]:
        return {
            "step": len(history) * cfg.group,
            "rank_nullity": total["hits"] / cfg.matrices,
            "null_residual": total["residual"],
            "solution_error": total["error"],
            "growth": total["growth"],
        }

    yield
    for _ in range(start, cfg.matrices // cfg.group):
        m, n = torch.randint(1, cfg.largest + 1, (2,)).tolist()
        r = int(torch.randint(1, min(m, n) + 1, ()))
        condition = cfg.condition ** float(torch.rand(()))
        A_BMN = planted(cfg.group, m, n, r, condition)[0].to(ctx.device)
        found = judge(cfg.method, A_BMN, r)
        total["hits"] += found["hits"]
        for name in ("residual", "error", "growth"):
            total[name] = max(total[name], found[name])
        history.append([condition, found["residual"], found["error"]])
        yield scores
    ctx.figure("null_space", lambda: draw(cfg, history))


CONTRACT = (
    "the rank-nullity theorem, for every matrix; 20 seeds from 1000 have 1 at the end and 0.504 "
    "half of the way"
)
SMALL = (
    "this project's contract for the section asks for 1e-10, which what counts as zero would grant "
    "by itself; in float64 20 seeds from 1000 have at most 9e-15"
)

TASK = Task(
    config=Config(),
    run=run,
    sections=("The Fundamental Spaces: The Null Space",),
    profiles={
        "smoke": {"matrices": 50, "group": 10, "largest": 8},
        "laptop": {"matrices": 1000, "group": 8},
        "paper": {},
    },
    variants={"elimination": {}, "svd": {"method": "svd"}},
    targets={
        profile: dict.fromkeys(METHODS, Target("rank_nullity", 1.0, "max", CONTRACT))
        for profile in ("smoke", "laptop", "paper")
    },
    claims=(
        *(
            Claim(
                f"A takes every null vector that {method} finds to zero, to 1e-12",
                metric="null_residual",
                left=method,
                right=1e-12,
                mode="min",
                source=SMALL,
            )
            for method in METHODS
        ),
        *(
            Claim(
                f"a solution by {method} plus anything from the null space is a solution, to 1e-12",
                metric="solution_error",
                left=method,
                right=1e-12,
                mode="min",
                source=SMALL,
            )
            for method in METHODS
        ),
    ),
)
