"""NT-Xent over two views of each product, with content groups and negatives from all workers.

The positive of a view is the other view of the same product. Every view of a product of another content
group is a negative. Products of the same group (a re-listing, another size) are neither: pushing them apart
would be wrong, and pulling them together would wipe out what tells them apart, which the shop may sell.

Computed by SupConLoss with explicit pairs, which equals NTXentLoss to rounding and needs O(B^2) memory where
NTXentLoss, building positives x negatives, needs O(B^3). Explicit pairs also keep clear of labels: the same
object given as `labels` and `ref_labels` makes these losses exactly 0, and labels counted from 0 on every
worker make strangers positives.
"""

from typing import Any

import torch
import torch.distributed as dist

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def nt_xent(first: torch.Tensor, second: torch.Tensor, groups: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean loss over both views of the global batch, the same number on every worker.

    `first` and `second` are float32[B, d], the two views of this worker's products; `groups` int64[B] their
    content groups, global numbers. B must be the same on every worker. Averaging the workers' gradients, as
    data-parallel training does, gives the gradient of one worker on the whole batch.
    """
    from pytorch_metric_learning.losses import SupConLoss  # a second, for scipy: paid by who trains
    from pytorch_metric_learning.reducers import MeanReducer

    first, second, groups = everyone(first), everyone(second), everyone(groups)
    views = torch.cat([first, second])  # float32[2B, d]
    loss = SupConLoss(temperature=temperature, reducer=MeanReducer())
    value: torch.Tensor = loss(views, indices_tuple=pairs(groups))
    return value


def pairs(groups: torch.Tensor) -> Pairs:
    """Anchors and positives, anchors and negatives among 2B views, where view i and i + B are of one product."""
    count = len(groups)
    rows = torch.arange(2 * count, device=groups.device)
    owners = torch.cat([groups, groups])
    anchors, negatives = torch.where(owners[:, None] != owners[None, :])
    return rows, (rows + count) % (2 * count), anchors, negatives


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
