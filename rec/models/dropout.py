"""Dropout whose masks a CPU draws fast.

torch draws a mask's numbers one by one in one thread, which was a tenth of a step of the item tower on two cores. Here
torch's generator gives the seed of another one (SFC64), whose 64 bits are four numbers: 13 times as fast. What
follows torch's generator, a checkpoint or a chunk that is computed again, has the same masks again.
"""

import numpy as np
import torch
from torch import nn

LEVELS = 1 << 16
"""A probability is taken to the nearest of so many."""


class Dropout(nn.Dropout):
    """nn.Dropout: a share of the numbers becomes 0, and the others grow by as much as their sum loses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The shape of `x`."""
        dropped = round(self.p * LEVELS)
        if x.device.type != "cpu" or not self.training or torch.compiler.is_compiling() or not 0 < dropped < LEVELS:
            return super().forward(x)
        seed = int(torch.randint(2**63 - 1, ()))
        words = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, -(-x.numel() // 4), np.uint64)
        drawn = torch.from_numpy(words.view(np.int16)[: x.numel()]).view(x.shape)  # all of int16, each as likely
        kept = (drawn >= dropped - LEVELS // 2).to(x.dtype)
        return x * kept.mul_(LEVELS / (LEVELS - dropped))
