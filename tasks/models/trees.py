"""Decision trees and forests of them, grown level by level with all nodes of a level at once.

CART (Breiman, Friedman, Olshen and Stone, 1984): a node is split at the threshold, halfway between
two neighbouring values of one feature, that lowers the impurity most, as long as it is impure.
With S_k the weighted sum of target k over a node and W its weight, the impurity is

    gini, variance   sum of w y^2  -  sum over k of S_k^2 / W,
    entropy          - sum over k of S_k log(S_k / W),

times the node's weight. With classes as one-hot targets the first is Gini's, with one number the
squared error.

Shapes: R rows, D features, K targets or classes, T trees, M nodes; of one level, A weighted rows of
all its trees and N nodes.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

# Rows times trees times features that are sorted at once.
AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Growth:
    """When to stop, and what to look at.

    Attributes:
        depth: the most splits between root and leaf.
        least: weight that each side of a split needs.
        features: how many of the features, drawn anew in each node, it may be split at; 0 for all.
            A node with no split at those is a leaf.
        entropy: measure impurity of classes by entropy.
    """

    depth: int = 100
    least: float = 1.0
    features: int = 0
    entropy: bool = False

    def purity(self, sum_K: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What a node's impurity is lowered by, up to what its rows have in common."""
        if self.entropy:
            return (torch.xlogy(sum_K, sum_K) - torch.xlogy(sum_K, weight[..., None])).sum(-1)
        return (sum_K**2).sum(-1) / weight.clamp_min(torch.finfo(weight.dtype).tiny)


class Trees(nn.Module):
    """Trees as one table of nodes, roots first; a leaf is its own child.

    A row goes to the second child where its feature is above the threshold. ``value_MK`` is the
    weighted mean of the targets, ``gain_M`` by how much the split lowers the impurity.
    """

    def __init__(
        self,
        n_trees: int,
        child_M2: torch.Tensor,
        feature_M: torch.Tensor,
        threshold_M: torch.Tensor,
        value_MK: torch.Tensor,
        weight_M: torch.Tensor,
        gain_M: torch.Tensor,
        depth: int,
    ) -> None:
        super().__init__()
        self.n_trees, self.depth = n_trees, depth
        self.register_buffer("child_M2", child_M2)
        self.register_buffer("feature_M", feature_M)
        self.register_buffer("threshold_M", threshold_M)
        self.register_buffer("value_MK", value_MK)
        self.register_buffer("weight_M", weight_M)
        self.register_buffer("gain_M", gain_M)

    def leaf(self, x_RD: torch.Tensor) -> torch.Tensor:
        """The leaf of each row in each tree, node_TR."""
        node_TR = torch.arange(self.n_trees, device=x_RD.device)[:, None].repeat(1, len(x_RD))
        rows, child = torch.arange(len(x_RD), device=x_RD.device), self.child_M2.flatten()
        flat, d = x_RD.flatten(), x_RD.shape[1]
        for _ in range(self.depth):
            x_TR = flat[rows * d + self.feature_M[node_TR]]
            node_TR = child[2 * node_TR + (x_TR > self.threshold_M[node_TR])]
        return node_TR

    def forward(self, x_RD: torch.Tensor) -> torch.Tensor:
        """The mean of the trees' predictions, RK."""
        return self.value_MK[self.leaf(x_RD)].mean(0)

    def importance(self, d: int) -> torch.Tensor:
        """What the splits at each feature lower the impurity by, as a share of all: D."""
        total_D = torch.zeros(d, dtype=self.gain_M.dtype, device=self.gain_M.device)
        total_D.index_add_(0, self.feature_M, self.gain_M)
        return total_D / total_D.sum().clamp_min(torch.finfo(total_D.dtype).tiny)


def one_hot(y_R: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Classes as targets, RK."""
    return F.one_hot(y_R, n_classes).double()


def tree(x_RD: torch.Tensor, y_RK: torch.Tensor, growth: Growth) -> Trees:
    """One tree on all rows."""
    return grow(x_RD, y_RK, torch.ones(1, len(x_RD)), growth)


def bootstrap(n_trees: int, n: int) -> torch.Tensor:
    """How often each of n rows comes when n are drawn with replacement, weight_TR."""
    index_TR = torch.randint(n, (n_trees, n))
    return torch.zeros(n_trees, n).scatter_add_(1, index_TR, torch.ones(n_trees, n))


def forest(x_RD: torch.Tensor, y_RK: torch.Tensor, n_trees: int, growth: Growth) -> Trees:
    """A random forest: each tree on rows drawn with replacement (Breiman, 2001)."""
    weight_TR = bootstrap(n_trees, len(x_RD))
    block = max(1, AT_ONCE // x_RD.numel())
    return joined([grow(x_RD, y_RK, w, growth) for w in weight_TR.split(block)])


def grow(x_RD: torch.Tensor, y: torch.Tensor, weight_TR: torch.Tensor, growth: Growth) -> Trees:
    """One tree for each row of weights, without the rows of weight 0; targets y_RK or y_TRK."""
    x_RD = x_RD.double()
    device, n_trees = x_RD.device, len(weight_TR)
    weight_TR = weight_TR.to(x_RD)
    # Equal values have equal ranks.
    rank_RD = torch.stack([column.unique(return_inverse=True)[1] for column in x_RD.T], 1)
    node_A, row_A = weight_TR.nonzero().T
    weight_A, y_AK = weight_TR[node_A, row_A], y.to(x_RD).expand(n_trees, -1, -1)[node_A, row_A]
    base, n_nodes, levels = 0, n_trees, []
    for depth in range(growth.depth + 1):
        sums = _sums(n_nodes, node_A, weight_A, y_AK)
        if depth < growth.depth:
            split = _best(x_RD, rank_RD, (node_A, row_A, weight_A, y_AK), sums, growth)
        else:
            split = _none(n_nodes, x_RD)
        gain_N, feature_N, threshold_N = split
        inner_N = gain_N > -torch.inf
        first_N = base + n_nodes + 2 * (inner_N.cumsum(0) - 1)
        own_N = base + torch.arange(n_nodes, device=device)
        child_N2 = torch.stack([first_N, first_N + 1], 1).where(inner_N[:, None], own_N[:, None])
        mean_NK = sums[1] / sums[0][:, None]
        gain_N = gain_N.where(inner_N, 0.0)
        levels.append((child_N2, feature_N, threshold_N, mean_NK, sums[0], gain_N))
        base, n_nodes = base + n_nodes, 2 * int(inner_N.sum())
        if not n_nodes:
            break
        above_A = x_RD[row_A, feature_N[node_A]] > threshold_N[node_A]
        kept_A, node_A = inner_N[node_A], child_N2[node_A, above_A.long()] - base
        node_A, row_A, weight_A, y_AK = (t[kept_A] for t in (node_A, row_A, weight_A, y_AK))
    return Trees(n_trees, *(torch.cat(part) for part in zip(*levels, strict=True)), depth)


def _sums(
    n_nodes: int, node_A: torch.Tensor, weight_A: torch.Tensor, y_AK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each node the weight, the weighted sum of the targets, and of their squares."""
    weighted_AK = weight_A[:, None] * y_AK
    total_N = weight_A.new_zeros(n_nodes).index_add_(0, node_A, weight_A)
    sum_NK = weight_A.new_zeros(n_nodes, y_AK.shape[1]).index_add_(0, node_A, weighted_AK)
    square_A = (weighted_AK * y_AK).sum(1)
    return total_N, sum_NK, weight_A.new_zeros(n_nodes).index_add_(0, node_A, square_A)


def _none(n_nodes: int, x_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """No split in any node."""
    gain_N = x_RD.new_full((n_nodes,), -torch.inf)
    return gain_N, torch.zeros_like(gain_N, dtype=torch.long), torch.zeros_like(gain_N)


def _best(
    x_RD: torch.Tensor,
    rank_RD: torch.Tensor,
    rows: tuple[torch.Tensor, ...],
    sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    growth: Growth,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best split of each node: gain_N (-inf for none), feature_N, threshold_N."""
    node_A, row_A, weight_A, y_AK = rows
    total_N, sum_NK, square_N = sums
    d, n_nodes = x_RD.shape[1], len(total_N)
    # Sorted by node, and within a node by value.
    key_DA, order_DA = (node_A * len(x_RD) + rank_RD[row_A].T).sort(dim=1)
    node_DA = key_DA // len(x_RD)
    weighted_AK = weight_A[:, None] * y_AK
    left_DAK, left_DA = weighted_AK[order_DA].cumsum(1), weight_A[order_DA].cumsum(1)
    left_DAK -= (sum_NK.cumsum(0) - sum_NK)[node_DA]
    left_DA -= (total_N.cumsum(0) - total_N)[node_DA]
    right_DAK, right_DA = sum_NK[node_DA] - left_DAK, total_N[node_DA] - left_DA
    purity_N = growth.purity(sum_NK, total_N)
    if growth.entropy:
        left_DAK, right_DAK = left_DAK.clamp_min(0), right_DAK.clamp_min(0)
    gain_DA = growth.purity(left_DAK, left_DA) + growth.purity(right_DAK, right_DA)
    gain_DA -= purity_N[node_DA]
    impurity_N = (0 if growth.entropy else square_N) - purity_N
    may_DA = (impurity_N > 1e-9 * total_N)[node_DA]
    may_DA &= (left_DA >= growth.least) & (right_DA >= growth.least)
    may_DA[:, :-1] &= (node_DA[:, :-1] == node_DA[:, 1:]) & (key_DA[:, :-1] < key_DA[:, 1:])
    may_DA[:, -1] = False
    if growth.features:
        drawn_ND = torch.rand(n_nodes, d).argsort(1).argsort(1) < growth.features
        may_DA &= drawn_ND.to(node_DA.device).T.gather(1, node_DA)
    gain = gain_DA.masked_fill(~may_DA, -torch.inf).flatten()
    node = node_DA.flatten()
    gain_N = gain.new_full((n_nodes,), -torch.inf).scatter_reduce_(0, node, gain, "amax")
    place = torch.arange(len(gain), device=gain.device)
    place = place.masked_fill((gain < gain_N[node]) | ~may_DA.flatten(), len(gain))
    first_N = torch.full_like(total_N, len(gain), dtype=torch.long)
    first_N = first_N.scatter_reduce_(0, node, place, "amin").clamp_max(len(gain) - 2)
    feature_N, at_N = first_N // len(node_A), first_N % len(node_A)
    low_N, high_N = (
        x_RD[row_A[order_DA[feature_N, (at_N + step).clamp_max(len(node_A) - 1)]], feature_N]
        for step in (0, 1)
    )
    return gain_N, feature_N, (low_N + high_N) / 2


def joined(parts: list[Trees]) -> Trees:
    """Several tables as one, again with all roots first."""
    if len(parts) == 1:
        return parts[0]
    n_trees, n_inner = sum(p.n_trees for p in parts), 0
    root, moved = 0, []
    for part in parts:
        own = torch.arange(len(part.child_M2), device=part.child_M2.device)
        inner = n_trees + n_inner + own - part.n_trees
        moved.append(torch.where(own < part.n_trees, root + own, inner))
        root, n_inner = root + part.n_trees, n_inner + len(own) - part.n_trees
    order = torch.cat(moved).argsort()
    child_M2 = torch.cat([m[p.child_M2] for m, p in zip(moved, parts, strict=True)])[order]
    rest = (
        torch.cat([getattr(p, name) for p in parts])[order]
        for name in ("feature_M", "threshold_M", "value_MK", "weight_M", "gain_M")
    )
    return Trees(n_trees, child_M2, *rest, depth=max(p.depth for p in parts))
