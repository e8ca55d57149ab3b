"""Products as plain lists, and their padded batch through the same code that training uses."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from rec.models.item_inputs import ItemBatch, ItemInputs, Ragged
from tests.item_tower.encoders import VOCABULARY

TEXT_WIDTH = 12


@dataclass(frozen=True)
class Product:
    """STD and RE as (key, id) pairs, and how many title tokens of which seed."""

    std: list[tuple[int, int]]
    re: list[tuple[int, int]]
    title: int
    seed: int = 0

    def states(self) -> NDArray[np.float16]:
        """float16[title, TEXT_WIDTH]"""
        return np.random.default_rng(self.seed).standard_normal((self.title, TEXT_WIDTH)).astype(np.float16)

    def ids(self) -> list[int]:
        """Token ids of the title."""
        return np.random.default_rng(self.seed).integers(4, VOCABULARY, self.title).tolist()


products = st.builds(
    Product,
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 39)), max_size=7),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 29)), max_size=7),
    st.integers(0, 9),
    st.integers(0, 1_000),
)


def inputs(catalogue: list[Product], *, ids: bool = False, titles: bool = True) -> ItemInputs:
    """The catalogue as training holds it: with token ids for titles if `ids`, without either if not `titles`."""
    states = [product.states() for product in catalogue]
    return ItemInputs(
        std_key=Ragged.from_lists([[key for key, _ in product.std] for product in catalogue]),
        std_id=Ragged.from_lists([[value for _, value in product.std] for product in catalogue]),
        re_key=Ragged.from_lists([[key for key, _ in product.re] for product in catalogue]),
        re_id=Ragged.from_lists([[value for _, value in product.re] for product in catalogue]),
        groups=np.arange(len(catalogue)),
        text_of_item=np.arange(len(catalogue)),
        state_offsets=_offsets([len(rows) for rows in states]),
        states=np.concatenate([*states, np.empty((0, TEXT_WIDTH), np.float16)]),
        title_id=Ragged.from_lists([product.ids() for product in catalogue]) if ids else None,
        titles=titles,
    )


def batch(catalogue: list[Product], *, ids: bool = False) -> ItemBatch:
    """All products of the catalogue in one batch."""
    return inputs(catalogue, ids=ids).batch(np.arange(len(catalogue)))


def _offsets(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
