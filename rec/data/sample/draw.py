"""Random choices that stay the same on every Python: all come from `random.Random.random`, the one
method whose sequence the language guarantees for a seed."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A seeded source of choices; equal seeds and equal calls give equal results."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def one(self, options: Sequence[T]) -> T:
        """One of `options`, each equally likely."""
        return options[int(self._random.random() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` distinct members of `options` in random order; all of them when there are fewer."""
        keys = [self._random.random() for _ in options]
        order = sorted(range(len(options)), key=keys.__getitem__)
        return [options[i] for i in order[:count]]

    def whole(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def between(self, low: float, high: float) -> float:
        """A float from [low, high)."""
        return low + (high - low) * self._random.random()
