"""The map from words to rows of the RE table: its ridge against the plain formula, and what it does with little."""

import numpy as np
import pytest

from rec.models import token_map


def _planted(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 12)).astype(np.float32)
    weight = rng.standard_normal((12, 5)).astype(np.float32)
    rows = 3.0 + vectors @ weight + noise * rng.standard_normal((n, 5))
    return vectors, rows.astype(np.float32), weight


def test_a_linear_relation_is_found() -> None:
    vectors, rows, _ = _planted(60, 0.0)
    made = token_map.fit(vectors[:50], rows[:50])(vectors[50:])
    assert np.abs(made - rows[50:]).max() < 0.05


def test_the_ridge_is_the_one_of_least_leave_one_out_error() -> None:
    vectors, rows, _ = _planted(20, 2.0)
    x, y = vectors.astype(np.float64), rows.astype(np.float64)

    def predict(x: np.ndarray, y: np.ndarray, new: np.ndarray, ridge: float) -> np.ndarray:
        centred = x - x.mean(0)
        weight = np.linalg.solve(centred.T @ centred + ridge * np.eye(12), centred.T @ (y - y.mean(0)))
        return y.mean(0) + (new - x.mean(0)) @ weight

    unit = np.mean(np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2)
    errors = []
    for strength in token_map.STRENGTHS:
        left = [predict(np.delete(x, i, 0), np.delete(y, i, 0), x[i], strength * unit) - y[i] for i in range(20)]
        errors.append(np.mean(np.square(left)))
    best = token_map.STRENGTHS[int(np.argmin(errors))]
    assert token_map.STRENGTHS[0] < best < token_map.STRENGTHS[-1]
    new = np.random.default_rng(1).standard_normal((4, 12)).astype(np.float32)
    made = token_map.fit(vectors, rows)(new)
    assert made == pytest.approx(predict(x, y, new, best * unit), abs=1e-4)


@pytest.mark.parametrize("n", [1, 3])
def test_tokens_that_are_all_alike_give_the_mean(n: int) -> None:
    rows = np.arange(5 * n, dtype=np.float32).reshape(n, 5)
    made = token_map.fit(np.ones((n, 12), np.float32), rows)(np.zeros((2, 12), np.float32))
    assert made == pytest.approx(np.tile(rows.mean(0), (2, 1)))
