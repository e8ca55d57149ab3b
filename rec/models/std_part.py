"""The part of an item's vector that says its standard attributes alone.

Titles tell products apart so well that contrastive training asks for nothing more, and what STD says of them stays
unlearned, though shoppers choose by it (README, "Cold items"). So the tower may make two unit vectors of an item, one
of all inputs and one of its STD positions before they saw any other, each with a SimCSE loss of its own. Joined they
are twice as wide as a vector should be, so what is kept of each is its principal components among the products that
were trained on (`rec.train.components`).
"""

import torch
from torch import nn

unit = nn.functional.normalize


def join(mixed: torch.Tensor, std: torch.Tensor, share: float) -> torch.Tensor:
    """Unit vectors float32[B, m + s] of unit vectors float32[B, m] and float32[B, s].

    The inner product of two of them is `share` of that of their STD parts, and the rest of that of the others.
    """
    return torch.cat([(1 - share) ** 0.5 * mixed, share**0.5 * std], -1)


def parts(vectors: torch.Tensor, std_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The unit vectors float32[B, m] and float32[B, s = std_width] that `join` made `vectors` float32[B, m + s] of."""
    mixed, std = vectors.split([vectors.shape[1] - std_width, std_width], -1)
    return unit(mixed, dim=-1), unit(std, dim=-1)


class Components(nn.Module):
    """The directions in which both parts are kept, `mixed` float32[d, d - s] and `std` float32[d, s]."""

    mixed: torch.Tensor
    std: torch.Tensor

    def __init__(self, width: int, std_width: int) -> None:
        super().__init__()
        self.register_buffer("mixed", torch.eye(width, width - std_width))
        self.register_buffer("std", torch.eye(width, std_width))

    def forward(self, mixed: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors float32[B, d - s] and float32[B, s] of both parts, float32[B, d]."""
        return unit(mixed @ self.mixed, dim=-1), unit(std @ self.std, dim=-1)
