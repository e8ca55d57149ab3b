"""Sampled negatives: a few of a request's candidates stand for all of them.

Of the m candidates of a request that are not its target, in the order of retrieval, the one at 0-based place r is
drawn with probability

    pi_r = min(1, c / sqrt(r + 1)),    c such that the pi_r sum to n

so what retrieval ranks high, the hard negatives, are mostly kept. Exactly n are drawn, none twice, by systematic
sampling (Madow 1949) from one uniform number u in [0, 1): the places where the running sums of pi pass u, u + 1, ...
A drawn candidate counts 1 / pi_r times (Horvitz-Thompson), in a softmax as -log pi_r on its logit (LogQ). Sums over
all candidates are then met on average, and with n >= m they are met exactly: all are drawn.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@lru_cache(maxsize=4_096)
def inclusion(count: int, draws: int) -> Floats:
    """float64[count] probabilities pi_r, falling, that `draws` of `count` candidates are drawn."""
    if draws >= count:
        return np.ones(count)
    wish = 1 / np.sqrt(np.arange(1, count + 1))
    tails = np.cumsum(wish[::-1])[::-1]  # sums of wish from r on
    sure = np.arange(count)
    scale = (draws - sure[:draws]) / tails[:draws]  # c when the first r are sure
    first = int(np.argmax(scale * wish[:draws] <= 1))  # fewest sure ones with which no other exceeds 1
    chances = scale[first] * wish
    chances[:first] = 1
    return chances


def choose(
    counts: NDArray[np.int64], labels: NDArray[np.int64], draws: int, uniform: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """bool[T] which candidates of B requests take part, float32[T] log of the probability that they do.

    `counts` int64[B] candidates of each, `labels` int64[B] place of the target, which always takes part;
    `uniform` float64[B] in [0, 1).
    """
    kept, log_q = np.ones(int(counts.sum()), bool), np.zeros(int(counts.sum()), np.float32)
    start = 0
    for count, label, u in zip(counts.tolist(), labels.tolist(), uniform.tolist(), strict=True):
        if draws < count - 1:
            chances = inclusion(count - 1, draws)
            ends = np.cumsum(chances)
            ends[-1] = draws  # whatever rounding left
            passed = np.ceil(ends - u)
            drawn = np.diff(passed, prepend=0) > 0
            others = start + np.delete(np.arange(count), label)
            kept[others], log_q[others] = drawn, np.log(chances)
        start += count
    return kept, log_q
