"""Weight transfer keeps the geometry that fits, and its report counts what happened."""

import numpy as np

from rec.features.transfer import project, transfer


def _table(rows: int = 30, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def test_geometry_of_a_low_rank_table_is_kept() -> None:
    rng = np.random.default_rng(1)
    table = (rng.normal(size=(30, 3)) @ rng.normal(size=(3, 12))).astype(np.float32)
    rows, kept = project(table, 4, std=0.05)
    centred = table[1:] - table[1:].mean(axis=0)
    true, found = centred @ centred.T, rows[1:] @ rows[1:].T
    assert kept > 0.999
    assert np.corrcoef(true.ravel(), found.ravel())[0, 1] > 0.999
    assert abs(rows[1:].std() - 0.05) < 1e-3
    assert not rows[0].any()


def test_same_table_same_rows_and_wide_targets_are_padded() -> None:
    rows, kept = project(_table(), 16, std=0.1)
    again, _ = project(_table(), 16, std=0.1)
    np.testing.assert_array_equal(rows, again)
    assert kept > 0.999
    assert not rows[:, 12:].any()


def test_report_counts_copied_missing_and_frozen() -> None:
    start = np.full((35, 4), 7, np.float32)
    occurs = np.zeros(35, bool)
    occurs[[1, 2, 3, 33]] = True
    begun, report = transfer("std", start, _table(30), occurs, 0.05, "project")
    assert (report.rows, report.copied, report.missing, report.frozen) == (35, 29, 5, 26)
    assert 0 < report.variance_kept < 1
    assert (begun[0] == 7).all()
    assert (begun[30:] == 7).all()
    np.testing.assert_array_equal(begun[1:30], project(_table(30), 4, 0.05)[0][1:])
