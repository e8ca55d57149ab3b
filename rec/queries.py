"""Vectors that a bundle is asked with: its user tower on the last events of shoppers, to try its index."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rec import artifact, dataset, histories
from rec.bundle import Bundle
from rec.config import Text
from rec.histories import Histories
from rec.models import user_tower
from rec.models.user_tower import UserTower
from rec.models.user_vectors import UserVectors
from rec.schema import PRODUCTS
from rec.state import UserState

Floats = NDArray[np.float32]


def drawn(made: Bundle, limit: int, seed: int) -> tuple[Floats, Literal["users", "items"]]:
    """float32[<= limit, d] unit vectors of shoppers drawn alike, of the recipe's datasets in the bundle's store.

    Where these are not there, as where the bundle was pulled from elsewhere, or hold no events, vectors of items: what
    is asked for similar products.
    """
    rng, data = np.random.default_rng(seed), made.config.root
    if all(artifact.peek(data / name) is not None for name in ("products", "users", "events")):
        h = histories.load(data)
        users = np.flatnonzero(np.diff(h.offsets) > 0)
        if len(users):
            chosen = np.sort(rng.choice(users, min(limit, len(users)), replace=False))
            tower = user_tower.load(made.folder("user_tower"))
            return of_users(tower, made.config.text, h, chosen, _rows(made, data)), "users"
    items = made.item_vectors()
    return items[np.sort(rng.choice(len(items), min(limit, len(items)), replace=False))], "items"


def of_users(tower: UserTower, text: Text, h: Histories, users: NDArray[np.int64], rows: NDArray[np.int64]) -> Floats:
    """float32[U, d] unit vectors of `users` right after their last event, what they search for apart.

    `rows` int64[N]: the tower's row of each item of `h`, -1 for one that it does not have.
    """
    states = []
    for user in users.tolist():
        end = int(h.offsets[user + 1])
        state = histories.state(h, user, end, tower.shape.history, int(h.at[end - 1]), context="")
        items = rows[state.items]
        known = items >= 0
        profile = _profile(h, tower, state.profile)
        states.append(UserState(items[known], state.events[known], state.ages_s[known], "", profile))
    return UserVectors(tower, text)(states)


def _rows(made: Bundle, data: Path) -> NDArray[np.int64]:
    """int64[N] row in the bundle of each row of the products dataset, which may be a later one; -1 for none."""
    place = {product_id: row for row, product_id in enumerate(made.product_ids())}
    ids = dataset.read(data / "products", PRODUCTS, ["product_id"])["product_id"].to_pylist()
    return np.array([place.get(product_id, -1) for product_id in ids], np.int64)


def _profile(h: Histories, tower: UserTower, values: Floats) -> Floats:
    """float32[P] of the columns that the tower reads, nan where the dataset has none."""
    by_name = dict(zip(h.profile_names, values.tolist(), strict=True))
    return np.array([by_name.get(name, np.nan) for name in tower.shape.profile_names], np.float32)
