"""The report of an experiment: counts are right, intervals hold what they should, a wrong split is said."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rec import postgres
from rec.config import Config, Evaluate
from rec.feedback import report
from rec.feedback.report import Arm, by_arm, figures, split
from rec.index import exposures, live_events
from rec.index.connections import Connections
from rec.index.exposures import SHOWN
from rec.index.live_events import FOLLOWING, LiveEvent
from tests.bundle import tiny
from tests.databases import fresh
from tests.index.test_exposures import made

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def test_a_product_counts_once_a_kind_for_its_shopper() -> None:
    lists = [
        ("control", "ann", "c1", "ab"), ("control", "ann", None, "ab"), ("control", None, "c1", "ab"),
        ("treatment", "bob", None, "ab"), ("treatment", "eve", None, "ab"),
    ]  # fmt: skip
    shown = pa.Table.from_pylist(
        [
            {"exposure_id": str(row), "arm": arm, "user_id": user, "client_id": client, "products": list(products),
             "served_at": NOW}
            for row, (arm, user, client, products) in enumerate(lists)
        ],
        SHOWN,
    )  # fmt: skip
    told = [("0", "a", "view"), ("0", "a", "view"), ("0", "a", "purchase"), ("0", "b", "rental"), ("2", "a", "cart"),
            ("3", "b", "rating"), ("3", "a", "view")]  # fmt: skip
    events = pa.Table.from_pylist(
        [{"product_id": product, "event": kind, "at": NOW, "exposure_id": row} for row, product, kind in told],
        FOLLOWING,
    )
    arms = by_arm(shown, events, DAY)
    assert arms["control"].lists.tolist() == [2, 1]
    assert arms["control"].chosen.tolist() == [[1, 0, 2], [0, 1, 0]]
    assert arms["treatment"].lists.tolist() == [1, 1]
    assert arms["treatment"].chosen.tolist() == [[1, 0, 0], [0, 0, 0]]


def drawn(shoppers: int, rate: float, seed: int) -> Arm:
    """Shoppers of one to five lists with clicks at a rate."""
    rng = np.random.default_rng(seed)
    lists = rng.integers(1, 6, shoppers).astype(float)
    clicks = rng.binomial(lists.astype(int), rate).astype(float)
    return Arm(lists, np.column_stack([clicks, np.zeros(shoppers), clicks // 2]))


def test_intervals_are_as_wide_as_theory_says_and_tell_arms_apart() -> None:
    arms = {"control": drawn(2_000, 0.2, 1), "treatment": drawn(2_000, 0.3, 2)}
    found = figures(arms, 0.5, 1_000, 7)
    for arm in arms.values():
        rate = arm.chosen[:, 0].sum() / arm.lists.sum()
        residual = arm.chosen[:, 0] - rate * arm.lists  # the delta method of a ratio
        error = np.sqrt((residual**2).sum()) / arm.lists.sum()
        side = found["control" if arm is arms["control"] else "treatment"]["per_list"]["clicks"]
        assert side["value"] == pytest.approx(rate, abs=1e-6)
        assert side["ci95"][1] - side["ci95"][0] == pytest.approx(2 * 1.96 * error, rel=0.1)
    gap = found["difference"]["clicks"]
    assert gap["ci95"][0] > 0.05
    assert gap["value"] == pytest.approx(0.1, abs=0.03)
    assert found["difference"]["carts"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert not found["split"]["mismatch"]
    same = figures({"control": drawn(2_000, 0.2, 3), "treatment": drawn(2_000, 0.2, 4)}, 0.5, 1_000, 7)
    low, high = same["difference"]["clicks"]["ci95"]
    assert low < 0 < high
    assert figures(arms, 0.5, 1_000, 7) == found


def test_an_arm_without_shoppers_has_no_difference() -> None:
    empty = Arm(np.empty(0), np.empty((0, 3)))
    found = figures({"control": drawn(20, 0.5, 1), "treatment": empty}, 0.5, 100, 7)
    assert found["difference"] == {"clicks": None, "carts": None, "purchases": None}
    assert (found["treatment"]["lists"], found["split"]["mismatch"]) == (0, True)
    assert figures({"control": empty, "treatment": empty}, 0.5, 100, 7)["split"]["p"] == 1


@pytest.mark.parametrize(
    ("control", "treatment", "share", "square", "p"),
    [
        (60, 40, 0.5, 4.0, 0.0455),
        (900, 100, 0.1, 0.0, 1.0),
        (8_800, 1_200, 0.1, 44.444, 0.0),
        (70, 30, 0.2, 6.25, 0.0124),
    ],
)
def test_the_split_is_tested_by_chi_square(control: int, treatment: int, share: float, square: float, p: float) -> None:
    found = split(control, treatment, share)
    assert (found["chi_square"], found["p"]) == (pytest.approx(square, abs=1e-3), pytest.approx(p, abs=1e-4))
    assert found["mismatch"] == (p < 0.001)


@pytest.fixture
def tried(database_url: str, tmp_path: Path) -> Iterator[tuple[Config, Connections]]:
    """A recipe with an experiment of no bundles."""
    url = fresh(database_url, "reported")
    with postgres.session(url) as connection:
        connection.execute(
            "INSERT INTO experiments (catalogue, control, treatment, share, salt, started_at)"
            " VALUES ('tiny', '0123456789ab', 'ba9876543210', 0.5, 's', now() - interval '2 hours')"
        )
    opened = Connections(url, size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(postgres.URL_VARIABLE, url)
        yield tiny.config(tmp_path).model_copy(update={"evaluate": Evaluate(bootstrap=200)}), opened
    opened.close()


def test_a_report_from_the_database(tried: tuple[Config, Connections]) -> None:
    recipe, opened = tried
    at = NOW - timedelta(hours=1)

    def listed(user_id: str, arm: str | None, experiment: int | None = 1) -> Any:
        told = {"user_id": user_id, "arm": arm, "experiment": experiment, "served_at": at, "catalogue": "tiny"}
        return made(3, **told)

    lists = [listed(f"a{number}", "control") for number in range(12)]
    lists += [listed(f"b{number}", "treatment") for number in range(10)]
    again = replace(listed("b0", "treatment"), served_at=at + timedelta(seconds=30))  # the view of b0 names the first
    exposures.write(opened, [*lists, again, listed("z", None, None), listed("z", "control", 2)])
    clicked = [*lists[:3], *lists[12:18]]
    live_events.store(opened, "tiny", [
        LiveEvent(event_id=str(number), user_id=each.user_id, product_id="P1", event="view",
                  at=at + timedelta(minutes=1), exposure_id=each.exposure_id if number % 2 else None)
        for number, each in enumerate(clicked)
    ])  # fmt: skip
    with opened.use() as connection:
        for user_id, kind in (("b0", "view"), ("b0", "purchase"), ("a9", "purchase")):  # the first is live as well
            connection.execute(
                "INSERT INTO events (catalogue, user_id, position, product_id, event, at)"
                " SELECT 'tiny', %s, count(*), 'P1', %s, %s FROM events",
                (user_id, kind, at + timedelta(minutes=2)),
            )
    found = report.run(recipe)
    assert (found["experiment"], found["control"]["shoppers"], found["treatment"]["shoppers"]) == (1, 12, 10)
    assert (found["control"]["lists"], found["control"]["clicks"], found["control"]["purchases"]) == (12, 3, 1)
    assert (found["treatment"]["lists"], found["treatment"]["clicks"], found["treatment"]["purchases"]) == (11, 6, 1)
    assert found["difference"]["clicks"]["value"] == pytest.approx(6 / 11 - 3 / 12, abs=1e-6)
    assert found["split"]["p"] == pytest.approx(0.6698, abs=1e-3)
