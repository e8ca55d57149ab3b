"""Softmax over many items: the full catalogue, or the batch's targets and uniform negatives with LogQ.

The sampled form estimates the full one: the target counts once, any other item counts 1 / q times, where q
is the probability that it is among the candidates. Items are candidates once, so that no target occurs
among its own negatives.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rec.models.item_table import ItemTable


def candidates(targets: Tensor, frequency: Tensor, num_negatives: int) -> tuple[Tensor, Tensor]:
    """The items that a step's softmax runs over, and log q of each.

    `targets` is int64[T], `frequency` float64[N] the share of each item among all targets. Returns
    ascending item rows int64[C] and float32[C]. Catalogues of at most `num_negatives` items are used
    whole, with log q = 0.
    """
    num_items = len(frequency)
    if num_items <= num_negatives:
        return torch.arange(num_items, device=targets.device), torch.zeros(num_items, device=targets.device)
    drawn = torch.randint(num_items, (num_negatives,), device=targets.device)
    rows = torch.unique(torch.cat([targets, drawn]))
    by_target = torch.log1p(-frequency[rows].clamp(max=1 - 1e-9)) * len(targets)
    by_draw = torch.log1p(torch.tensor(-1.0 / num_items, dtype=torch.float64)).item() * num_negatives
    return rows, torch.log(-torch.expm1(by_target + by_draw)).float()


def loss(users: Tensor, targets: Tensor, table: ItemTable, rows: Tensor, log_q: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of unit vectors float32[T, d] against items int64[T], over candidates int64[C].

    `rows` and `log_q` are those of `candidates`; every target is among the rows.
    """
    return cross_entropy(users @ table(rows).T / temperature, torch.searchsorted(rows, targets), log_q)


def cross_entropy(scores: Tensor, place: Tensor, log_q: Tensor) -> Tensor:
    """Mean over T of -log of the target's share: scores float32[T, C], target columns int64[T], log q float32[C]."""
    own = torch.zeros_like(scores).scatter_(1, place[:, None], log_q[place][:, None])
    return F.cross_entropy(scores - log_q + own, place)
