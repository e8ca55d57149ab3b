"""Softmax over many items: all of them, or the batch's targets and uniform negatives with LogQ.

The sampled form estimates the full one: the target counts once, any other item counts 1 / q times, where q
is the probability that it is among the candidates. Items are candidates once, so that no target occurs
among its own negatives. An item that is nobody's target in training counts only `cold_weight` times: it was
never chosen because it was not there, and full weight teaches the tower to recommend nothing new.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Candidates(nn.Module):
    """Chooses the items that a step's softmax runs over."""

    frequency: Tensor
    weight: Tensor
    pool: Tensor

    def __init__(self, counts: Tensor, cold_weight: float, num_negatives: int) -> None:
        """`counts` int64[N] is how often each item is a target in training, of at least one item."""
        super().__init__()
        self.num_negatives = num_negatives
        weight = torch.where(counts > 0, 1.0, cold_weight)
        self.register_buffer("frequency", counts.double() / counts.sum(), persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("pool", torch.nonzero(weight > 0).flatten(), persistent=False)

    @property
    def all(self) -> bool:
        """Whether every item of positive weight is a candidate of every step; a target's log(q / weight) is 0 then."""
        return len(self.pool) <= self.num_negatives

    def forward(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """For targets int64[T]: ascending item rows int64[C] with every target, and log(q / weight) float32[C].

        All items of positive weight are candidates, with q = 1, when they are no more than `num_negatives`.
        """
        if self.all:
            return self.pool, -torch.log(self.weight[self.pool])
        drawn = self.pool[torch.randint(len(self.pool), (self.num_negatives,), device=targets.device)]
        rows = torch.unique(torch.cat([targets, drawn]))
        by_target = torch.log1p(-self.frequency[rows].clamp(max=1 - 1e-9)) * len(targets)
        by_draw = math.log1p(-1 / len(self.pool)) * self.num_negatives
        log_q = torch.log(-torch.expm1(by_target + by_draw)).float()
        return rows, log_q - torch.log(self.weight[rows])


def cross_entropy(scores: Tensor, place: Tensor, log_q: Tensor) -> Tensor:
    """Mean over T of -log of the target's share: scores float32[T, C], target columns int64[T], log q float32[C]."""
    corrected = (scores - log_q).scatter_add_(1, place[:, None], log_q[place][:, None])
    return F.cross_entropy(corrected, place)


def over_all(users: Tensor, items: Tensor, place: Tensor, log_q: Tensor) -> Tensor:
    """What `cross_entropy` gives of the scores of users float32[T, d] and items float32[C, d], log q 0 for targets.

    The scores are never in memory together, which takes two fifths of the time.
    """
    return F.linear_cross_entropy(users, items, place, linear_bias=-log_q, options=torch.nn.LinearCrossEntropyOptions())
