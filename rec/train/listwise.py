"""The ranker's losses, and the ranks of its targets, over the candidates of one request."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def rectangle(values: Tensor, counts: Tensor, fill: float) -> Tensor:
    """float[B, width] rows of `counts` int64[B] values each, of values float[T] one after the other, then `fill`."""
    real = torch.arange(int(counts.max()), device=values.device) < counts[:, None]  # bool[B, width]
    return torch.full(real.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(real, values)


def listwise_loss(logits: Tensor, counts: Tensor, labels: Tensor) -> Tensor:
    """Mean over requests of -log softmax of the target among its request's candidates.

    logits float32[T] of all requests, one after the other; counts int64[B] candidates of each; labels
    int64[B] position of the target within its request. With -log q added to the logits of sampled negatives it
    estimates the loss over all.
    """
    return F.cross_entropy(rectangle(logits, counts, -torch.inf), labels)


def pointwise_loss(logits: Tensor, counts: Tensor, labels: Tensor, log_q: Tensor, sizes: Tensor) -> Tensor:
    """Mean over requests of the mean binary cross-entropy of all candidates of the request: is it the target?

    Arguments as in `listwise_loss`; log_q float32[T] is the log of the probability that a candidate takes part, and
    sizes int64[B] the candidates of each request whether they take part or not: the mean over those that do
    estimates that over all.
    """
    target = torch.zeros_like(logits)
    target[counts.cumsum(0) - counts + labels] = 1
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * torch.exp(-log_q)
    return (each / sizes.repeat_interleave(counts)).sum() / len(counts)


def target_ranks(
    scores: NDArray[np.float32], counts: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """int64[B] 0-based rank of each target; of equal scores the one that retrieval put first ranks first."""
    starts = np.cumsum(counts) - counts
    request = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(len(scores)) - starts[request]
    own = scores[starts + labels][request]
    ahead = (scores > own) | ((scores == own) & (position < labels[request]))
    return np.bincount(request, ahead, minlength=len(counts)).astype(np.int64)
