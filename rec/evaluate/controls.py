"""What any recommender has to beat. Controls see the same training events and the same candidates.

* popular: most training events first
* category_popular: the category of the user's last item first, most training events first within it
* random: unit vectors drawn at random for the items; a user is the mean of those of their history
"""

import numpy as np
from numpy.typing import NDArray

from rec.evaluate import ranking
from rec.evaluate.cases import Cases

CONTROLS = ("popular", "category_popular", "random")
RANDOM_WIDTH = 128

Ints = NDArray[np.int64]


def ranks(cases: Cases, popular_order: Ints, category: Ints, seed: int) -> dict[str, Ints]:
    """int64[U] rank of the target by each control.

    `popular_order` int64[N] lists item rows by falling popularity, `category` int64[N] is the category of
    each item, -1 where unknown.
    """
    last = [int(category[state.items[-1]]) if len(state.items) else -1 for state in cases.states]
    return {
        "popular": ranking.by_order(popular_order, cases.targets, cases.exclude),
        "category_popular": ranking.by_group_then_order(
            popular_order, category, np.array(last, np.int64), cases.targets, cases.exclude
        ),
        "random": _random(cases, len(category), seed),
    }


def _random(cases: Cases, num_items: int, seed: int) -> Ints:
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((num_items, RANDOM_WIDTH), np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    anyone = rng.standard_normal(RANDOM_WIDTH).astype(np.float32)
    users = [items[state.items].mean(axis=0) if len(state.items) else anyone for state in cases.states]
    vectors = np.array(users, np.float32).reshape(-1, RANDOM_WIDTH)
    return ranking.by_vectors(vectors, items, cases.targets, cases.exclude)
