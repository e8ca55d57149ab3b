"""Keeps the best epoch of a training run, and says when to stop waiting for a better one."""

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Contest(nn.Module, Generic[M]):
    """The module in training beside the weights of its best epoch so far; both are in every checkpoint."""

    best_figure: Tensor
    best_epoch: Tensor

    def __init__(self, current: M) -> None:
        super().__init__()
        self.current = current
        begun = current.state_dict()
        self._names = list(begun)
        # Parameters without gradients: data-parallel training leaves these alone.
        self._best = nn.ParameterList(nn.Parameter(value.clone(), requires_grad=False) for value in begun.values())
        self.register_buffer("best_figure", torch.full((1,), -1.0, dtype=torch.float64))
        self.register_buffer("best_epoch", torch.zeros(1, dtype=torch.int64))

    def forward(self, *inputs: Any) -> Any:
        """What the module in training makes of `inputs`."""
        return self.current(*inputs)

    def judge(self, reached: float, epoch: int) -> None:
        """Keep the weights in training as the best when their figure, 0 or more, is higher; `epoch` 0 is the start."""
        if reached > float(self.best_figure):
            for kept, value in zip(self._best, self.current.state_dict().values(), strict=True):
                kept.copy_(value)
            self.best_figure.fill_(reached)
            self.best_epoch.fill_(epoch)

    def stale(self, epochs: int, patience: int) -> bool:
        """Whether the last `patience` of `epochs` finished epochs brought nothing better; never with patience 0."""
        return 0 < patience <= epochs - int(self.best_epoch)

    def winner(self) -> M:
        """The module, with the weights of the best epoch."""
        self.current.load_state_dict(dict(zip(self._names, self._best, strict=True)))
        return self.current
