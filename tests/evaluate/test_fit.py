"""AUC, macro AUC and the comparison of systems that foretell fit, beside scikit-learn and plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as reference_log_loss
from sklearn.metrics import roc_auc_score

from rec.evaluate import fit
from rec.evaluate.auc import auc, of_groups


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40))
def test_auc_is_scikit_learns_and_none_of_one_class(rows: list[tuple[bool, int]]) -> None:
    labels, scores = [label for label, _ in rows], [score / 7 for _, score in rows]
    if len(set(labels)) == 1:
        assert np.isnan(auc(labels, scores))
    else:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30))
def test_weights_are_repetitions(rows: list[tuple[bool, int, int]]) -> None:
    labels, scores, times = (np.array(column) for column in zip(*rows, strict=True))
    weighted = of_groups(labels, np.unique(scores, return_inverse=True)[1], times.astype(np.float64))
    np.testing.assert_allclose(weighted, auc(np.repeat(labels, times), np.repeat(scores, times)))


def _drawn(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    chances = rng.dirichlet([1, 4, 1], count)
    return np.array([rng.choice(3, p=row) for row in chances]) + 1, chances


def test_measures_are_scikit_learns_and_differences_are_paired() -> None:
    fits, chances = _drawn()
    flat = np.tile(fit.frequencies(fits), (len(fits), 1))
    found = fit.compared(fits, {"ours": chances, "flat": flat}, ours="ours", seed=1)
    assert found["ours.auc"]["value"] == pytest.approx(roc_auc_score(fits, chances, multi_class="ovr"), abs=5e-5)
    assert found["ours.log_loss"]["value"] == pytest.approx(reference_log_loss(fits, chances), abs=5e-5)
    assert found["flat.auc"]["value"] == 0.5
    assert found["ours.minus.flat.auc"]["ci95"] == pytest.approx(
        [bound - 0.5 for bound in found["ours.auc"]["ci95"]], abs=1e-3
    )
    low, high = found["ours.auc"]["ci95"]
    assert low < found["ours.auc"]["value"] < high
    assert found["ours.minus.flat.log_loss"]["ci95"][1] < 0


def test_a_class_that_nobody_told_has_no_auc() -> None:
    fits, chances = _drawn(60)
    found = fit.compared(np.minimum(fits, 2), {"ours": chances}, ours="ours", seed=1)
    assert found["ours.auc"]["value"] is None
    assert found["ours.auc.large"]["value"] is None
    assert found["ours.auc.small"]["value"] is not None
