"""One training step of the ranker: a batch of requests, its loss, one update.

The loss is (1 - w) listwise + w pointwise, w = `ranker.pointwise`. Every request counts the same in both, however
many candidates it has, so with equally many requests on each worker the mean over workers is the mean over all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rec.features.requests import Requests
from rec.models.reranker import Reranker
from rec.train.listwise import listwise_loss, pointwise_loss
from rec.train.negatives import choose


@dataclass(frozen=True, slots=True)
class Batch:
    """B requests, the t of their candidates that take part one after the other."""

    sparse: Tensor
    """int64[t, F]"""
    varlen: Tensor
    """int64[t, R]"""
    dense: Tensor
    """float32[t, G] raw values."""
    counts: Tensor
    """int64[B] candidates that take part."""
    labels: Tensor
    """int64[B] position of the target among them."""
    log_q: Tensor
    """float32[t] log of the probability that the candidate takes part; 0 for targets."""
    sizes: Tensor
    """int64[B] all candidates of the request."""

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def batch(
    data: Requests, users: NDArray[np.int64], negatives: int = 0, uniform: NDArray[np.float64] | None = None
) -> Batch:
    """The given requests; with `negatives` above 0 that many of each are drawn (`rec.train.negatives`) by
    `uniform` float64[B] in [0, 1)."""
    where, labels = data.flat(users), np.asarray(data.labels[users])
    sizes = data.offsets[users + 1] - data.offsets[users]
    counts, log_q = sizes, np.zeros(len(where), np.float32)
    if negatives:
        assert uniform is not None
        kept, log_q = choose(sizes, labels, negatives, uniform)
        before = np.concatenate([[0], np.cumsum(kept)])  # candidates kept before each
        starts = np.cumsum(sizes) - sizes
        counts = before[starts + sizes] - before[starts]
        labels = before[starts + labels] - before[starts]
        where, log_q = where[kept], log_q[kept]
    inputs = data.at(where)
    arrays = (inputs.sparse, inputs.varlen, inputs.dense, counts, labels, log_q, sizes)
    return Batch(*(torch.from_numpy(array) for array in arrays))


class Training(nn.Module):
    """A model and its loss as one module, so that one forward pass is one step of one worker.

    The pointwise loss has a bias of its own. It starts where a request's candidates have one target among them; the
    listwise loss does not see it, and the model that is kept has none.
    """

    def __init__(self, model: Reranker, pointwise: float, candidates: float) -> None:
        """`candidates` is the mean number of candidates of a request."""
        super().__init__()
        self.model, self.pointwise = model, pointwise
        start = -math.log(max(candidates - 1, 1))
        self.bias = nn.Parameter(torch.full((1,), start), requires_grad=pointwise > 0)

    def forward(self, given: Batch) -> Tensor:
        """The loss of one batch."""
        logits = self.model(given.sparse, given.varlen, given.dense)
        listwise = listwise_loss(logits - given.log_q, given.counts, given.labels)
        if not self.pointwise:
            return listwise
        pointwise = pointwise_loss(logits + self.bias, given.counts, given.labels, given.log_q, given.sizes)
        return (1 - self.pointwise) * listwise + self.pointwise * pointwise

    def optimizer(self, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
        """AdamW, whose weight decay leaves tables, linear weights and the bias alone."""
        decayed, rest = self.model.parameter_groups(weight_decay)
        rest["params"].append(self.bias)
        return torch.optim.AdamW([decayed, rest], lr=learning_rate, fused=True)


def update(
    training: nn.Module, optimizer: torch.optim.Optimizer, given: Batch, frozen: Sequence[nn.Parameter] = ()
) -> Tensor:
    """One step on a batch; the parameters `frozen` and what the optimizer knows of them stay as they are.

    `training` is a Training, data-parallel or not. Returns its loss, detached.
    """
    loss: Tensor = training(given)
    optimizer.zero_grad()
    loss.backward()
    for parameter in frozen:
        parameter.grad = None
    optimizer.step()
    return loss.detach()
