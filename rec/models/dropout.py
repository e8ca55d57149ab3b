"""Dropout whose masks a CPU draws fast.

torch draws a mask's numbers in one thread unless the CPU is Intel's and MKL there. Here torch's generator gives the
seed of another one (SFC64), whose 64 bits are four numbers. What follows torch's generator, a checkpoint or a chunk
that is computed again, has the same masks again.
"""

import numpy as np
import torch
from torch import nn

LEVELS = 1 << 16
"""A probability is taken to the nearest of so many."""


class Dropout(nn.Dropout):
    """nn.Dropout: a share of the numbers becomes 0, and the others grow by as much as their sum loses.

    Compiled, on a GPU or in place it is torch's.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The shape of `x`."""
        dropped = round(self.p * LEVELS)
        drawn_here = x.device.type == "cpu" and self.training and not torch.compiler.is_compiling()
        if not drawn_here or self.inplace or not 0 < dropped < LEVELS:
            return super().forward(x)
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))  # uint64
        drawn = torch.from_numpy(words.view(np.int16)[: x.numel()]).view(x.shape)  # all of int16, each as likely
        kept = (drawn >= dropped - LEVELS // 2).to(x.dtype)
        return x * kept.mul_(LEVELS / (LEVELS - dropped))
