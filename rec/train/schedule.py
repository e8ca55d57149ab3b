"""The learning rate over a whole run."""

import math


def rate(step: int, steps: int, *, warmup: float) -> float:
    """Factor on the learning rate at `step` of `steps`: up along a line over the share `warmup` of all steps, then
    down to zero along a cosine."""
    warm = max(round(warmup * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
