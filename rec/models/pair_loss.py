"""Softmax over the batch for pairs of products that the same users chose, both directions, with LogQ.

Every product of a pair is an anchor whose positive is its partner. The other products of the batch are its negatives,
but for those of its own content group and those whose group is known to be chosen together with it. A negative
is in the batch because pairs are drawn, popular ones more often; its score is corrected by -log of how often it is
expected there (Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys
2019). The positive is there for certain and counts once, as in `rec.train.softmax`.

Corrected in full, scores learn log P(partner | anchor), in which a product without any event is behind all others;
the less is corrected, the nearer they come to log P(partner | anchor) / P(partner).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from rec.models.losses import everyone


class Partners(nn.Module):
    """What the loss knows of all N items: their groups, how often each is drawn, and which groups go together."""

    groups: torch.Tensor
    log_q: torch.Tensor
    known: torch.Tensor

    def __init__(
        self, groups: torch.Tensor, share: torch.Tensor, first: torch.Tensor, second: torch.Tensor, log_q: float = 1.0
    ) -> None:
        """`groups` int64[N]; `share` float64[N], the probability that one side of a drawn pair is the item; `first` and
        `second` int64[P], the item rows of all pairs; `log_q` how much of the correction is made."""
        super().__init__()
        self._count = int(groups.max()) + 1
        one, other = groups[first], groups[second]
        codes = torch.cat([one * self._count + other, other * self._count + one])
        self.register_buffer("groups", groups, persistent=False)
        even = -math.log(max(int((share > 0).sum()), 1))  # of items that are all drawn equally often
        scaled = log_q * torch.log(share.clamp(min=1e-12)) + (1 - log_q) * even
        self.register_buffer("log_q", scaled.float(), persistent=False)
        self.register_buffer("known", torch.unique(codes), persistent=False)

    def strangers(self, rows: torch.Tensor) -> torch.Tensor:
        """bool[M, M]: of items int64[M], which are neither of one group nor known to go together."""
        groups = self.groups[rows]
        codes = groups[:, None] * self._count + groups[None, :]  # int64[M, M]
        place = torch.searchsorted(self.known, codes).clamp(max=len(self.known) - 1)
        return (groups[:, None] != groups[None, :]) & (self.known[place] != codes)


def pair_loss(
    first: torch.Tensor, second: torch.Tensor, rows: torch.Tensor, partners: Partners, temperature: float
) -> torch.Tensor:
    """Mean loss over both sides of the global batch, the same number on every worker.

    `first` and `second` are float32[B, d], the vectors of this worker's pairs, `rows` int64[2, B] their item rows. B
    must be the same on every worker; averaging the workers' gradients gives that of one worker on the whole batch.
    """
    vectors = torch.cat([everyone(first), everyone(second)])  # float32[2B, d]
    rows = torch.cat([everyone(rows[0]), everyone(rows[1])])  # int64[2B]
    count = len(rows)
    anchors = torch.arange(count, device=rows.device)
    twins = (anchors + count // 2) % count
    scores = vectors @ vectors.T / temperature  # float32[2B, 2B]
    expected = partners.log_q[rows] + math.log(max(count - 2, 1))
    logits = (scores - expected).masked_fill(~partners.strangers(rows), -torch.inf)
    logits = logits.index_put((anchors, twins), scores[anchors, twins])
    return F.cross_entropy(logits, twins)
