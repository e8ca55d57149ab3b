"""What any recommender has to beat. Controls rank the same candidates and count all events but the tests: they
have no parameters to choose, so the events that train the ranker are theirs as well.

* popular: most events first
* category_popular: the category of the user's last item first, most events first within it
* random: unit vectors drawn at random for the items; a user is the mean of those of their history

`shuffled` gives each user the target of another one: what a system still finds then is popularity, and no knowledge of
the user.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rec import histories
from rec.evaluate import ranking
from rec.evaluate.cases import Cases
from rec.histories import Histories
from rec.retrieval import Excluded, popular, popularity

RANDOM_WIDTH = 128
SHUFFLES = 100
"""Other users with whom one is tried to exchange a target that is no candidate."""

Ints = NDArray[np.int64]


def popular_order(h: Histories) -> Ints:
    """int64[N] item rows by falling count of all events but the tests, ties by row."""
    return popular(popularity(h.items[histories.events_before_test(h)], h.num_items))


def ranks(cases: Cases, order: Ints, category: Ints, seed: int) -> dict[str, Ints]:
    """int64[U] rank of the target by each control.

    `order` int64[N] is that of `popular_order`, `category` int64[N] is the category of
    each item, -1 where unknown.
    """
    last = [int(category[state.items[-1]]) if len(state.items) else -1 for state in cases.states]
    return {
        "popular": ranking.by_order(order, cases.targets, cases.exclude),
        "category_popular": ranking.by_group_then_order(
            order, category, np.array(last, np.int64), cases.targets, cases.exclude
        ),
        "random": _random(cases, len(category), seed),
    }


def popular_lists(order: Ints, exclude: Excluded, k: int) -> list[Ints]:
    """The first k candidates of each user in the order int64[N] of all."""
    heads = ((order[: k + len(rows)], rows) for rows in exclude)
    return [head[~np.isin(head, rows)][:k] for head, rows in heads]


def shuffled(cases: Cases, seed: int) -> tuple[Cases, Ints]:
    """The same users with their targets permuted, and which users int64[V] they are.

    A user whom the permutation gives what is no candidate for them exchanges it with others, drawn until both may have
    what they get. Users who find no such partner are left out.
    """
    rng = np.random.default_rng(seed)
    targets = rng.permutation(cases.targets)
    wrong = np.array([t in rows for t, rows in zip(targets, cases.exclude, strict=True)], bool)
    for user in np.flatnonzero(wrong).tolist():
        for other in rng.integers(0, len(targets), SHUFFLES).tolist():
            if targets[other] not in cases.exclude[user] and targets[user] not in cases.exclude[other]:
                targets[[user, other]] = targets[[other, user]]
                wrong[[user, other]] = False
                break
    kept = np.flatnonzero(~wrong)
    return replace(cases.part(kept), targets=targets[kept]), kept


def _random(cases: Cases, num_items: int, seed: int) -> Ints:
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((num_items, RANDOM_WIDTH), np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    anyone = rng.standard_normal(RANDOM_WIDTH).astype(np.float32)
    users = [items[state.items].mean(axis=0) if len(state.items) else anyone for state in cases.states]
    vectors = np.array(users, np.float32).reshape(-1, RANDOM_WIDTH)
    return ranking.by_vectors(vectors, items, cases.targets, cases.exclude)
