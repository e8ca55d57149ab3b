"""Item vectors during user-tower training: what the user tower makes of an item's content, plus a norm-bounded delta.

Only items that are a target in training (warm items) have a delta. A cold item has the adapted vector alone, also
when it is drawn as a negative.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F


class ItemTable(nn.Module):
    """Unit vectors of N items: normalise(adapt(content) + delta), ‖delta‖ ≤ bound."""

    content: Tensor
    slot: Tensor

    def __init__(self, content: NDArray[np.float32], warm: NDArray[np.int64], bound: float, width: int) -> None:
        """`content` is float32[N, c], what `adapt` reads; `warm` the item rows that may get a delta of `width` d; bound
        0: none, inf: any."""
        super().__init__()
        self.bound = bound
        slot = np.full(len(content), -1, np.int64)
        if bound > 0:
            rows = np.unique(warm)
            slot[rows] = np.arange(len(rows))
            self.delta = nn.Parameter(torch.zeros(max(len(rows), 1), width))
        self.register_buffer("content", torch.from_numpy(np.ascontiguousarray(content)), persistent=False)
        self.register_buffer("slot", torch.from_numpy(slot), persistent=False)

    def forward(self, rows: Tensor, adapt: Callable[[Tensor], Tensor]) -> Tensor:
        """Unit vectors float32[..., d] of item rows int64[...]; `adapt` is the user tower's."""
        vectors = adapt(self.content[rows])
        if self.bound > 0:
            vectors = vectors + self.deltas(rows)
        return F.normalize(vectors, dim=-1)

    def deltas(self, rows: Tensor) -> Tensor:
        """Bounded deltas float32[..., d]; zero for cold items."""
        slot = self.slot[rows]
        raw = F.embedding(slot.clamp(min=0), self.delta) * (slot >= 0).unsqueeze(-1)
        if math.isinf(self.bound):
            return raw
        return raw * (self.bound / raw.norm(dim=-1, keepdim=True).clamp(min=self.bound))

    @torch.inference_mode()
    def export(self, adapt: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        """All unit vectors float32[N, d]."""
        rows = torch.arange(len(self.content), device=self.content.device)
        vectors: NDArray[np.float32] = self(rows, adapt).cpu().numpy()
        return vectors
