"""Histories: order, unknown products, profiles, and the split that keeps held-out events out of training."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rec import dataset
from rec.histories import Histories, events_before_test, leave_one_out, load, state, training_events
from rec.schema import EVENTS, INTERACTIONS, PRODUCTS, USERS, Contract

START = datetime(2024, 1, 1, tzinfo=UTC)


def _write(root: Path, contract: Contract, rows: list[dict[str, Any]]) -> None:
    full = [{name: row.get(name) for name in contract.schema.names} for row in rows]
    table = pa.Table.from_pylist(full, contract.schema)
    dataset.write(root / contract.kind, contract, [table], inputs={}, config={})


def _event(user: str, product: str, day: int, **more: Any) -> dict[str, Any]:
    return {"user_id": user, "product_id": product, "event": "view", "at": START + timedelta(days=day)} | more


@pytest.fixture
def histories(tmp_path: Path) -> Histories:
    _write(tmp_path, PRODUCTS, [{"product_id": f"p{i}", "title": "t", "available": True} for i in range(4)])
    _write(
        tmp_path,
        USERS,
        [
            {"user_id": "ann", "height_cm": 170.0, "numeric": [("waist_cm", 70.0)]},
            {"user_id": "no-events"},
        ],
    )
    rows = [
        _event("ann", "p3", 0, event="cart"),
        _event("ann", "gone", 1),
        _event("ann", "p0", 2, context="a wedding"),
        _event("ann", "p1", 2, event="purchase"),
        _event("bob", "p2", 0),
        _event("bob", "p2", 5),
    ]
    _write(tmp_path, INTERACTIONS, rows)
    return load(tmp_path)


def test_events_are_in_order_and_unknown_products_are_counted(histories: Histories) -> None:
    assert histories.user_ids == ["ann", "bob", "no-events"]
    assert histories.offsets.tolist() == [0, 3, 5, 5]
    assert histories.items.tolist() == [3, 0, 1, 2, 2]
    assert [EVENTS[kind - 1] for kind in histories.events] == ["cart", "view", "purchase", "view", "view"]
    assert histories.contexts == ["", "a wedding", "", "", ""]
    assert (histories.num_items, histories.unknown) == (4, 1)


def test_profiles_keep_only_columns_with_a_value(histories: Histories) -> None:
    assert histories.profile_names == ["height_cm", "waist_cm"]
    np.testing.assert_array_equal(histories.profiles, [[170.0, 70.0], [np.nan, np.nan], [np.nan, np.nan]])


def test_the_last_two_events_are_held_out_only_where_three_exist(histories: Histories) -> None:
    split = leave_one_out(histories)
    assert split.train_end.tolist() == [1, 5, 5]
    assert split.test_users.tolist() == split.ranker_users.tolist() == [0]


def test_which_events_train_and_which_a_control_may_count(histories: Histories) -> None:
    assert training_events(histories).tolist() == [True, False, False, True, True]
    assert events_before_test(histories).tolist() == [True, True, False, True, True]


def test_state_sees_only_events_before_its_end(histories: Histories) -> None:
    now = int(histories.at[2])
    seen = state(histories, 0, 2, 1, now, "a picnic")
    assert seen.items.tolist() == [0]
    assert seen.ages_s.tolist() == [0.0]
    assert state(histories, 0, 2, 9, now, "").ages_s.tolist() == [2 * 86_400.0, 0.0]
    assert state(histories, 2, 5, 9, now, "").cold
    assert not seen.cold
    assert seen.context == "a picnic"
