"""DLRM after the lookup (Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", arXiv:1906.00091, section 2): training and serving run this one network.

The dense fields become one more vector of the width of a field (bottom network); all vectors are multiplied with each
other, every pair once; the products beside the dense fields' vector go through the top network. What the paper does
not have is the linear term over the dense fields, through which training starts at the retrieval score.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Interaction(nn.Module):
    """float32[K] logits of `fields` vectors of width `dim` and `dense` normalised numbers; a new one gives zeros.

    `bottom` are the widths of the layers before the dense fields' vector, `hidden` those of the top network.
    """

    pairs: Tensor

    def __init__(
        self, fields: int, dense: int, dim: int, *, bottom: list[int], hidden: list[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        count = fields + 1
        self.bottom = _layers([dense, *bottom, dim])
        self.layers = _layers([dim + count * (count - 1) // 2, *hidden])
        self.top = nn.Linear(hidden[-1], 1, bias=False)
        self.linear = nn.Parameter(torch.zeros(dense))
        nn.init.zeros_(self.top.weight)
        row, column = torch.tril_indices(count, count, offset=-1)
        self.register_buffer("pairs", row * count + column, persistent=False)

    def forward(self, factors: Tensor, scaled: Tensor) -> Tensor:
        """Logits float32[K] of factors float32[K, fields, dim] and normalised dense fields float32[K, dense]."""
        own = scaled
        for layer in self.bottom:
            own = F.relu(layer(own))  # float32[K, dim]
        deep = self._first(own, self._dots(torch.cat([own.unsqueeze(1), factors], dim=1)))
        for layer in self.layers[1:]:
            deep = layer(F.dropout(F.relu(deep), self.dropout, self.training))
        deep = F.dropout(F.relu(deep), self.dropout, self.training)
        return scaled @ self.linear + self.top(deep)[:, 0]

    def _dots(self, vectors: Tensor) -> Tensor:
        """float32[K, pairs] of vectors float32[K, fields + 1, dim]."""
        return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)

    def _first(self, own: Tensor, dots: Tensor) -> Tensor:
        """The top network's first layer on both its inputs, which are not joined: that copy would be a tenth of all."""
        first, width = self.layers[0], own.shape[1]
        assert isinstance(first, nn.Linear)
        return torch.addmm(F.linear(own, first.weight[:, :width], first.bias), dots, first.weight[:, width:].T)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The matrices of all layers: what weight decay is for."""
        return [layer.weight for layer in (*self.bottom, *self.layers, self.top)]


def _layers(sizes: list[int]) -> nn.ModuleList:
    layers = [nn.Linear(sizes[i], sizes[i + 1]) for i in range(len(sizes) - 1)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.ModuleList(layers)
