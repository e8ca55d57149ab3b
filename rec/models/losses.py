"""NT-Xent over two views of each product, with content groups and negatives from all workers.

The positive of a view is the other view of the same product. Every view of a product of another content
group is a negative. Products of the same group (a re-listing, another size) are neither: pushing them apart
would be wrong, and pulling them together would wipe out what tells them apart, which the shop may sell.

Written as the cross-entropy that it is (Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", 2020, equation 1): NTXentLoss of pytorch-metric-learning, building positives x negatives, needs O(B^3)
memory, and its SupConLoss, which lists all pairs, takes four to five times as long; both are the tests' oracles.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F


def nt_xent(first: torch.Tensor, second: torch.Tensor, groups: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean loss over both views of the global batch, the same number on every worker.

    `first` and `second` are float32[B, d], the two views of this worker's products, of length 1; `groups` int64[B]
    their content groups, global numbers. B must be the same on every worker. Averaging the workers' gradients, as
    data-parallel training does, gives the gradient of one worker on the whole batch.
    """
    first, second, groups = everyone(first), everyone(second), everyone(groups)
    views, owners = torch.cat([first, second]), torch.cat([groups, groups])  # float32[2B, d], int64[2B]
    rows = torch.arange(len(views), device=views.device)
    twins = rows.roll(len(first))
    neither = (owners[:, None] == owners) & (rows != twins[:, None])  # bool[2B, 2B], a view with itself among them
    scores = (views @ views.T / temperature).masked_fill(neither, -torch.inf)
    return F.cross_entropy(scores, twins)


def everyone(mine: torch.Tensor) -> torch.Tensor:
    """Rows of all workers in rank order, with gradients where there are any."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    everyone: torch.Tensor = _Gather.apply(mine)
    return everyone


class _Gather(torch.autograd.Function):
    """dist.all_gather with a gradient: a row's is the sum of what all workers' losses have for it."""

    @staticmethod
    def forward(context: Any, mine: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed.chunk(dist.get_world_size())[dist.get_rank()]
