"""The addressing of NTM and DNC entry by entry, as the book and the papers write it down.

Loops over slots and heads on lists of Python's numbers, for one sequence: slow, and with nothing to
hide an error in. Graves et al. (2014), section 3.3, for the NTM; Graves et al., Nature 538 (2016),
Methods, for the DNC. ``kernels.dnc`` and ``kernels.ntm`` say where both need an epsilon.

Shapes: N slots, W word size, R read heads, H heads.
"""

import math
from typing import Any

import torch

from kernels.dnc import EPSILON, Interface, State

Vector = list[float]
Matrix = list[Vector]


def content(M: Matrix, k: Vector, beta: float) -> Vector:
    """Softmax over the slots of strength times cosine."""
    scores = []
    for row in M:
        dot = sum(a * b for a, b in zip(k, row, strict=True))
        lengths = (sum(a * a for a in k) + EPSILON) * (sum(b * b for b in row) + EPSILON)
        scores.append(beta * dot / math.sqrt(lengths))
    raised = [math.exp(score - max(scores)) for score in scores]
    return [e / sum(raised) for e in raised]


def usage(u: Vector, write: Vector, reads: Matrix, free: Vector) -> Vector:
    """What was written is in use, what was read and freed is not."""
    new = []
    for i in range(len(u)):
        retained = math.prod(1 - f * read[i] for f, read in zip(free, reads, strict=True))
        new.append((u[i] + write[i] - u[i] * write[i]) * retained)
    return new


def allocation(u: Vector) -> Vector:
    """The emptiest slots first."""
    u = [EPSILON + (1 - EPSILON) * used for used in u]
    a, before = [0.0] * len(u), 1.0
    for i in sorted(range(len(u)), key=u.__getitem__):
        a[i], before = (1 - u[i]) * before, u[i] * before
    return a


def changed(M: Matrix, w: Vector, erase: Vector, vector: Vector) -> Matrix:
    """M[i][j] (1 - w[i] e[j]) + w[i] v[j]."""
    return [
        [m * (1 - w[i] * e) + w[i] * v for m, e, v in zip(row, erase, vector, strict=True)]
        for i, row in enumerate(M)
    ]


def linked(L: Matrix, p: Vector, w: Vector) -> Matrix:
    """L[i][j]: was slot i written right after slot j?"""
    N = len(w)
    return [
        [(1 - w[i] - w[j]) * L[i][j] + w[i] * p[j] if i != j else 0.0 for j in range(N)]
        for i in range(N)
    ]


def dnc_by_loops(state: State, to: Interface) -> tuple[Matrix, State]:
    """The words read and the next state; everything is a list of Python's numbers."""
    M, u, p, L, w, reads = state
    N, u = len(M), usage(u, w, reads, to.free_gates_BR)
    (g_a,), (g_w,), (key,) = to.allocation_gate_B1, to.write_gate_B1, to.write_key_B1W
    looked_up = content(M, key, to.write_strength_B1[0])
    w = [g_w * (g_a * a + (1 - g_a) * c) for a, c in zip(allocation(u), looked_up, strict=True)]
    M = changed(M, w, to.erase_BW, to.write_vector_BW)
    L, total = linked(L, p, w), sum(w)
    p = [(1 - total) * old + new for old, new in zip(p, w, strict=True)]
    new_reads = []
    for r, before in enumerate(reads):
        pi = [mode[r] for mode in to.read_modes_BSR]
        c = content(M, to.read_keys_BRW[r], to.read_strengths_BR[r])
        f = [sum(L[i][j] * before[j] for j in range(N)) for i in range(N)]
        b = [sum(L[j][i] * before[j] for j in range(N)) for i in range(N)]
        new_reads.append([pi[0] * b[i] + pi[1] * c[i] + pi[2] * f[i] for i in range(N)])
    words = [[sum(r[i] * M[i][j] for i in range(N)) for j in range(len(M[0]))] for r in new_reads]
    return words, State(M, u, p, L, w, new_reads)


def stages(M: Matrix, w: Vector, k: Vector, beta: float, g: float, s: Vector, gamma: float) -> Any:
    """An NTM's weighting: by content, interpolated, shifted, sharpened."""
    N, reach = len(w), len(s) // 2
    looked_up = content(M, k, beta)
    gated = [g * c + (1 - g) * last for c, last in zip(looked_up, w, strict=True)]
    shifted = [
        sum(s[tap] * gated[(i - tap + reach) % N] for tap in range(len(s))) for i in range(N)
    ]
    raised = [(v + EPSILON) ** gamma for v in shifted]
    return looked_up, gated, shifted, [v / sum(raised) for v in raised]


def ntm_by_loops(state: Any, to: Any) -> tuple[Matrix, Any]:
    """The words read and the next memory and weightings; the last head writes."""
    (M, weights), (head, erase, vector) = state, to
    each = zip(
        weights,
        head.keys_BHW,
        head.strengths_BH,
        head.gates_BH1,
        head.shifts_BHS,
        head.sharpness_BH1,
        strict=True,
    )
    weights = [stages(M, w, k, beta, g[0], s, gamma[0])[-1] for w, k, beta, g, s, gamma in each]
    M = changed(M, weights[-1], erase, vector)
    read = weights[:-1]
    words = [[sum(w[i] * M[i][j] for i in range(len(M))) for j in range(len(M[0]))] for w in read]
    return words, (M, weights)


def violations(state: Any) -> dict[str, float]:
    """By how much what must hold of a DNC's State, or an NTM's memory and weightings, does not.

    Weights are at least 0 and sum to at most 1; usage is from 0 to 1; so are the links, whose rows
    and columns sum to at most 1 and whose diagonal is 0. A number of at most 0 says that it holds.
    """
    of_dnc = isinstance(state, State)
    parts = (state.write_BN, state.read_BRN, state.precedence_BN) if of_dnc else state[1:]
    found = {"simplex_violation": max(map(beyond_simplex, parts))}
    if not of_dnc:
        return found
    u, L = state.usage_BN, state.link_BNN
    return found | {
        "usage_violation": max(float(-u.min()), float(u.max()) - 1),
        "link_violation": max(beyond_simplex(L), beyond_simplex(L.mT)),
        "diagonal": float(L.diagonal(dim1=1, dim2=2).abs().max()),
    }


def beyond_simplex(weights: torch.Tensor) -> float:
    """By how much a row has a weight below 0, or sums to more than 1."""
    return max(float(-weights.min()), float(weights.sum(-1).max()) - 1)
