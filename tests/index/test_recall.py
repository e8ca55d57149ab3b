"""Recall is what it says, and user vectors that try an index are those of the bundle's own rows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec import assemble, dataset, histories, queries
from rec.index import recall
from rec.index.recall import Asked
from rec.index.search import Filters
from rec.models import user_tower
from rec.models.user_vectors import UserVectors
from rec.schema import PRODUCTS
from tests.bundle import tiny


@given(scores=st.lists(st.integers(0, 50), min_size=1, max_size=30), missed=st.integers(0, 30), k=st.integers(1, 20))
def test_recall_is_the_share_that_was_found_but_for_equals(scores: list[int], missed: int, k: int) -> None:
    """A search that loses the `missed` nearest products."""
    ordered = np.array(sorted(scores, reverse=True), np.float32) / 50
    exact, found = ordered[:k], ordered[missed:][:k]
    last = exact[-1]
    assert recall.of(found, exact) == pytest.approx((found >= last).sum() / len(exact))
    assert recall.of(exact, exact) == 1


def test_products_with_the_same_vector_are_no_misses_and_nothing_is_found_of_nothing() -> None:
    exact = np.array([0.9, 0.8, 0.8], np.float32)
    assert recall.of(exact[[0, 2, 1]], exact) == 1
    assert recall.of(exact[:1], exact) == pytest.approx(1 / 3)
    assert recall.of(exact[:0], exact[:0]) == 1


@pytest.mark.parametrize(
    ("filters", "exclude", "sold_out", "name"),
    [
        (Filters(), [], False, "none"),
        (Filters(), [], True, "stock"),
        (Filters(), [3], True, "seen"),
        (Filters(price_max=5.0), [], True, "price"),
        (Filters(price_min=0.0, categories=("coat",)), [3], False, "category+price+seen"),
    ],
)
def test_a_search_belongs_to_one_class(filters: Filters, exclude: list[int], sold_out: bool, name: str) -> None:
    asked = Asked(np.ones(2, np.float32), 5, np.array(exclude, np.int64), filters)
    assert recall.filter_class(asked, sold_out=sold_out) == name


def test_an_older_bundle_is_asked_by_users_who_chose_from_a_later_catalogue(tmp_path: Path) -> None:
    """Products went and came since the bundle was made: its rows are no longer the rows of the dataset."""
    recipe = tiny.make(tiny.config(tmp_path))
    made = assemble.create(recipe)
    before, of = queries.drawn(made, tiny.SHOPPERS, 0)
    assert of == "users"
    assert len(before) == tiny.SHOPPERS
    h = histories.load(recipe.root)
    states = [
        histories.state(h, user, end, 8, int(h.at[end - 1]), "") for user, end in enumerate(h.offsets[1:].tolist())
    ]
    tower = UserVectors(user_tower.load(recipe.at("user_tower")), recipe.text)
    np.testing.assert_allclose(before, tower(states), atol=1e-6)
    table = dataset.read(recipe.at("products"), PRODUCTS)
    later = [table.slice(tiny.ITEMS // 2), table.slice(0, tiny.ITEMS // 2)]
    dataset.write(recipe.at("products"), PRODUCTS, later, inputs={}, config={})
    after, _ = queries.drawn(made, tiny.SHOPPERS, 0)
    np.testing.assert_allclose(after, before, atol=1e-6)
    elsewhere = tmp_path / "other"
    made.path.parent.parent.joinpath("tiny").rename(elsewhere)
    vectors, of = queries.drawn(made, 5, 0)
    assert (of, vectors.shape) == ("items", (5, tiny.WIDTH))
