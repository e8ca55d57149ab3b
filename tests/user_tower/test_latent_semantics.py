"""Latent semantic analysis of tokens: what it keeps, that a product's place depends on itself alone, and cold items."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.sparse import csr_matrix

from rec import dataset, histories
from rec.config import UserTower
from rec.models import latent_semantics
from rec.models.latent_semantics import LatentSemantics
from rec.schema import TENSORS
from rec.train import user
from rec.train.sequences import windows
from tests.user_tower.world import NUM_ITEMS, PER_CLUSTER, WIDTH, make, unit_rows

TOPICS, EACH, COMPONENTS = 4, 25, 12


def products(seed: int = 0) -> csr_matrix:
    """100 products of four topics: six of the topic's ten words, two words of all, one of its own."""
    rng = np.random.default_rng(seed)
    made = np.zeros((TOPICS * EACH, 200), np.float32)
    for row in range(len(made)):
        topic = row // EACH
        made[row, rng.choice(10, 6, replace=False) + 10 * topic] += 1
        made[row, 40 + rng.choice(5, 2, replace=False)] += 2
        made[row, 60 + row] = 1
    return csr_matrix(made)


def test_topics_are_told_apart_and_the_scale_is_what_it_says() -> None:
    given = products()
    placed = LatentSemantics.fit(given, COMPONENTS, seed=0)(given)
    assert placed.dtype == np.float32
    assert placed.shape == (100, COMPONENTS)
    np.testing.assert_allclose(placed.mean(axis=0), 0, atol=1e-4)
    assert (placed**2).sum(axis=1).mean() == pytest.approx(1, abs=1e-3)
    unit = placed / np.linalg.norm(placed, axis=1, keepdims=True)
    nearest = (unit @ unit.T - 2 * np.eye(100)).argmax(axis=1)
    assert (nearest // EACH == np.arange(100) // EACH).all()


def test_a_product_depends_on_itself_alone_and_unknown_tokens_count_for_nothing() -> None:
    given = products()
    made = LatentSemantics.fit(given, COMPONENTS, seed=0)
    together = made(given)
    np.testing.assert_allclose(
        np.concatenate([made(given[row : row + 1]) for row in range(9)]), together[:9], atol=1e-6
    )
    assert not set(made.tokens.tolist()) & set(range(60, 160)), "a token of one product alone is left out"
    wider = given.tolil()
    wider.resize(100, 500)
    wider[:, 400] = 7
    np.testing.assert_allclose(made(wider.tocsr()), together, atol=1e-6)
    np.testing.assert_allclose(made(csr_matrix((1, 20), dtype=np.float32))[0], -made.centre, atol=1e-6)


def test_what_is_saved_places_products_alike(tmp_path: Path) -> None:
    given = products()
    made = LatentSemantics.fit(given, COMPONENTS, seed=0)
    assert latent_semantics.load(tmp_path) is None
    made.save(tmp_path)
    again = latent_semantics.load(tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again(given), made(given))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_tiny_catalogue_has_few_components_and_no_error(rows: int) -> None:
    given = products()[:rows]
    placed = LatentSemantics.fit(given, COMPONENTS, seed=0)(given)
    assert placed.shape == (rows, COMPONENTS)
    assert np.isfinite(placed).all()
    assert not placed[:, 3:].any()


def test_a_tower_starts_at_what_products_have_in_common(tmp_path: Path) -> None:
    make(tmp_path, num_users=30)
    h = histories.load(tmp_path)
    rng = np.random.default_rng(0)
    words = np.zeros((NUM_ITEMS, 80), np.float32)
    for item in range(NUM_ITEMS):
        words[item, 8 * (item // PER_CLUSTER) + rng.choice(8, 5, replace=False)] = 1
        words[item, 48 + rng.choice(32, 2, replace=False)] = 1
    given = csr_matrix(words)
    placed = LatentSemantics.fit(given, COMPONENTS, seed=0)(given)
    content = latent_semantics.beside(unit_rows(rng, (NUM_ITEMS, WIDTH)), placed)  # vectors that say nothing
    data = windows(h, histories.leave_one_out(h).train_end, 8, {}, exclude_seen=False)
    options = UserTower(semantics=COMPONENTS, adapter=8)
    tower = user.build(data, content, np.zeros((1, 4), np.float32), options, "minilm").tower.eval()
    with torch.inference_mode():
        found = tower.adapt(torch.from_numpy(content)).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    clusters = np.arange(NUM_ITEMS) // PER_CLUSTER
    nearest = (found @ found.T - 2 * np.eye(NUM_ITEMS)).argmax(axis=1)
    assert (clusters[nearest] == clusters).mean() > 0.8
    by_vector = (content[:, :WIDTH] @ content[:, :WIDTH].T - 2 * np.eye(NUM_ITEMS)).argmax(axis=1)
    assert (clusters[by_vector] == clusters).mean() < 0.5


def test_tokens_of_std_re_and_title_are_kept_apart(tmp_path: Path) -> None:
    rows = [
        {"std_id": [3], "re_id": [3, 3], "title_id": []},
        {"std_id": [], "re_id": [], "title_id": [3, 1]},
    ]
    full = [
        {
            "product_id": str(n),
            "group": n,
            "std_key": [1] * len(row["std_id"]),
            "re_key": [1] * len(row["re_id"]),
            **row,
        }
        for n, row in enumerate(rows)
    ]
    dataset.write(tmp_path / "tensors", TENSORS, [pa.Table.from_pylist(full, TENSORS.schema)], inputs={}, config={})
    found = latent_semantics.counts(tmp_path / "tensors").toarray()
    assert found.shape == (2, 12)
    assert {(row, column): found[row, column] for row, column in zip(*found.nonzero(), strict=True)} == {
        (0, 9): 1, (0, 10): 2, (1, 11): 1, (1, 5): 1,
    }  # fmt: skip
