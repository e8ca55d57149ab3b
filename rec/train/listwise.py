"""The ranker's loss, and the ranks of its targets, over the candidates of one request."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def listwise_loss(logits: Tensor, counts: Tensor, labels: Tensor) -> Tensor:
    """Mean over requests of -log softmax of the target among its request's candidates.

    logits float32[T] of all requests, one after the other; counts int64[B] candidates of each; labels
    int64[B] position of the target within its request.
    """
    width = int(counts.max())
    real = torch.arange(width, device=logits.device) < counts[:, None]  # bool[B, width]
    padded = torch.full(real.shape, -torch.inf, device=logits.device).masked_scatter(real, logits)
    return F.cross_entropy(padded, labels)


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
