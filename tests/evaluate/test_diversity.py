"""Coverage, exposure and similarity of lists against cases worked by hand and a slow loop."""

import numpy as np
import pytest

from rec.evaluate import diversity


def test_exposure_is_equal_or_all_on_one() -> None:
    assert diversity.gini(np.array([3, 3, 3, 3])) == pytest.approx(0)
    assert diversity.gini(np.array([0, 0, 0, 12])) == pytest.approx(3 / 4)
    assert diversity.gini(np.array([1, 3])) == pytest.approx(1 / 4)
    assert diversity.gini(np.zeros(3, np.int64)) == 0


def test_similarity_is_the_mean_over_pairs_of_a_list() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    top = np.array([[0, 1, 2], [5, 5, -1], [7, 8, -1], [3, -1, -1]])
    found = diversity.similarity(top, vectors)
    first = np.mean([vectors[a] @ vectors[b] for a, b in ((0, 1), (0, 2), (1, 2))])
    assert found[:3] == pytest.approx([first, 1.0, vectors[7] @ vectors[8]], abs=1e-6)
    assert np.isnan(found[3])


def test_figures_of_lists() -> None:
    vectors = np.eye(4, dtype=np.float32)
    found = diversity.figures(np.array([[0, 1], [0, 2], [0, -1]]), vectors, 100, 0)
    assert found["coverage"] == 0.75
    assert found["gini"] == pytest.approx(2 * (2 * 1 + 3 * 1 + 4 * 3) / (4 * 5) - 5 / 4)
    assert found["similarity"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert "similarity" not in diversity.figures(np.array([[0, -1]]), vectors, 100, 0)
