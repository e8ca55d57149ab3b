"""The benchmark `index` on few vectors and a real Postgres: its truth is exact search, its clusters are clusters."""

import numpy as np
import pytest

from rec import retrieval
from rec.config import Index
from rec.evaluate import index_speed, vector_sets
from rec.evaluate.index_speed import SHARES, Work
from rec.index import trial
from rec.postgres import connect


def test_exact_search_in_postgres_is_the_truth_it_is_measured_by(database_url: str) -> None:
    """Where every search is exact, each filter passes what it is meant to and nothing is missed."""
    vectors = vector_sets.generated(1_500, 6, 16, seed=3)
    with trial.database(database_url) as url:
        index = Index(exact_rows=0, ef_search=100)
        figures = index_speed.of_set(url, vectors, index, Work(0, 6, 12), resamples=100, seed=3)
    filters = ["none", "seen", *(f"{kind}{name}" for kind in ("price", "category", "stock") for name in SHARES)]
    for name in filters:
        assert figures[f"{name}.recall"]["value"] > 0.9, name
        assert figures[f"{name}.full"]["value"] == 1, name
    for name in ("price0.1", "category0.1", "stock0.1"):  # fewer than K pass, so that exact search answers
        assert figures[f"{name}.recall"]["value"] == 1, name
    assert figures["none.recall.float32.rescored"]["value"] >= figures["none.recall.float32"]["value"] > 0.9
    assert figures["ef_search"]["value"] >= 100
    assert 100 <= figures["recall95.ef_search"]["value"] <= figures["ef_search"]["value"]
    assert figures["recall95.none.recall"]["value"] > 0.9
    assert figures["recall95.clients4.qps.per_core"]["value"] > 0
    assert figures["table.bytes"]["value"] > 2 * 16
    for name in ("copy.rows_per_s", "copy.over.raw", "build.per_min_core", "index.bytes", "clients1.qps", "over.exact"):
        assert figures[name]["value"] > 0, name
    with connect(database_url) as connection:
        left = connection.execute("SELECT 1 FROM pg_database WHERE datname LIKE 'rec_trial_%'").fetchall()
    assert left == []


def test_generated_vectors_lie_in_clusters_and_are_the_same_again() -> None:
    made = vector_sets.generated(4_000, 50, 32, seed=1)
    for vectors in (made.items, made.queries):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    again, other = (vector_sets.generated(4_000, 50, 32, seed) for seed in (1, 2))
    assert np.array_equal(made.items, again.items)
    assert not np.array_equal(made.items, other.items)
    strangers = np.random.default_rng(0).normal(size=(4_000, 32)).astype(np.float32)
    strangers /= np.linalg.norm(strangers, axis=1, keepdims=True)

    def contrast(items: np.ndarray) -> float:
        """How much nearer the tenth neighbour is than a stranger."""
        return float((retrieval.search(items[:200], items, 11)[1][:, 10] - (items[:200] @ items.T).mean(axis=1)).mean())

    assert contrast(made.items) > contrast(strangers) + 0.1
    far = retrieval.search(made.queries, made.items, 10)[1][:, 9]
    assert np.median(far) == pytest.approx(0.9, abs=0.1), "shoppers are near what they like"
