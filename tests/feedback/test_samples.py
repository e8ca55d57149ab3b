"""Which choices become samples, against what, and which are left out."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rec import dataset, histories, postgres
from rec.config import Config
from rec.feedback import samples
from rec.index import exposures, forget, live_events
from rec.index.connections import Connections
from rec.index.live_events import LiveEvent
from rec.schema import EXPOSURES, INTERACTIONS, PRODUCTS, USERS, Contract
from tests import pickles
from tests.bundle import tiny
from tests.databases import fresh
from tests.index.test_exposures import made

NOW = datetime.now(UTC)
SHOWN = NOW - timedelta(days=5)


def put(recipe: Config, contract: Contract, rows: list[dict[str, Any]]) -> None:
    """Write a dataset of which absent columns are null."""
    full = [{name: row.get(name) for name in contract.schema.names} for row in rows]
    table = pa.Table.from_pylist(full, contract.schema)
    dataset.write(recipe.at(contract.kind), contract, [table], inputs={}, config={})


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Iterator[tuple[Config, Connections]]:
    """A recipe with products P0 to P5, and `old`, who bought on the fourth day before today and on the second."""
    url = fresh(database_url, "listed")
    recipe = tiny.config(tmp_path)
    put(recipe, PRODUCTS, [{"product_id": f"P{row}", "title": "x", "available": True} for row in range(6)])
    put(recipe, USERS, [{"user_id": "old", "height_cm": 170.0}])
    days = (400, 5, 2)
    put(recipe, INTERACTIONS, [
        {"user_id": "old", "product_id": f"P{row}", "event": "purchase",
         "at": NOW - timedelta(days=age) + timedelta(minutes=10)}
        for row, age in enumerate(days)
    ])  # fmt: skip
    opened = Connections(url, size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(postgres.URL_VARIABLE, url)
        yield recipe, opened
    opened.close()


def tell(
    opened: Connections,
    *told: tuple[str, str, str | None],
    at: datetime = SHOWN + timedelta(minutes=5),
    who: str = "client_id",
    kind: str = "view",
) -> None:
    """Events by clients or users, of products, that name lists, received when they happened."""
    events = [
        LiveEvent(event_id=f"{name}{product}{kind}{at}", product_id=product, event=kind, at=at, exposure_id=named,
                  client_id=name if who == "client_id" else None, user_id=name if who == "user_id" else None)
        for name, product, named in told
    ]  # fmt: skip
    assert len(live_events.store(opened, "tiny", events).stored) == len(told)
    with opened.use() as connection:
        connection.execute("UPDATE live_events SET received_at = at")


def of(client: str | None, **given: Any) -> Any:
    """A list of P0, P1, P2 that a client was shown."""
    told = {"catalogue": "tiny", "user_id": None, "client_id": client, "served_at": SHOWN, "history": ["P5", "gone"],
            "history_events": np.array([1, 2]), "history_ages": np.array([5.0, 6.0], np.float32)}  # fmt: skip
    return made(3, **{**told, **given})


def rows(recipe: Config) -> list[dict[str, Any]]:
    """The dataset."""
    return dataset.read(recipe.at("exposures"), EXPOSURES).to_pylist()


def test_a_choice_stands_against_what_was_shown_and_not_chosen(shop: tuple[Config, Connections]) -> None:
    recipe, opened = shop
    two, later = of("a"), of("a", served_at=SHOWN + timedelta(hours=1))
    exposures.write(opened, [two, later, of("b"), of("nobody")])
    tell(opened, ("a", "P0", None), ("b", "P9", None))  # P9 was not shown
    tell(opened, ("a", "P2", None), at=SHOWN + timedelta(hours=2))
    done = samples.run(recipe)
    assert (done["lists"], done["with_choice"], done["rows"], done["left_out"]) == (4, 2, 2, {})
    first, second = rows(recipe)
    # the places of made() are those of retrieval, in which the list is turned round
    assert (first["exposure_id"], first["rows"], first["label"]) == (two.exposure_id, [1, 0], 1)
    assert (first["positions"], first["places"]) == ([2, 1], [1, 2]), "P2 was chosen later, from another list"
    assert (second["exposure_id"], second["rows"], second["label"]) == (later.exposure_id, [2, 1, 0], 0)
    assert (first["history"], first["history_events"], first["history_ages"]) == ([5], [1], [5.0])
    assert (first["retrieved"], first["best"], first["user_id"]) == (60, 1.0, None)
    assert pickles.found(recipe.at("exposures")) == []
    assert samples.run(recipe)["skipped"]
    tell(opened, ("b", "P1", None))
    assert samples.run(recipe)["rows"] == 3


def test_what_is_no_sample_is_counted(shop: tuple[Config, Connections]) -> None:
    recipe, opened = shop
    unscored, alone = of("b", degraded=["user_tower_unavailable"]), of("d")
    gone = of("c", products=["gone", "P1", "P2"])
    exposures.write(opened, [unscored, gone, alone, open_ := of("e", served_at=NOW - timedelta(hours=1))])
    tell(opened, ("b", "P0", None), ("c", "gone", None), *(("d", f"P{row}", alone.exposure_id) for row in range(3)))
    tell(opened, ("e", "P0", open_.exposure_id), at=NOW - timedelta(minutes=50))
    done = samples.run(recipe)
    assert done["lists"] == 3, "the window of the last one is open"
    assert done["left_out"] == {"nothing_else_shown": 3, "unknown_product": 1, "unranked": 1}
    assert rows(recipe) == []
    assert len(samples.load(recipe.at("exposures"), histories.load(recipe.root)).states) == 0


def test_the_log_s_events_are_choices_but_for_the_test(shop: tuple[Config, Connections]) -> None:
    recipe, opened = shop
    at = [NOW - timedelta(days=age) for age in (5, 2)]
    earlier, tested = (of(None, user_id="old", served_at=moment) for moment in at)
    exposures.write(opened, [earlier, tested, of(None, user_id="other", served_at=at[0])])
    done = samples.run(recipe)
    assert (done["with_choice"], done["rows"], done["left_out"]) == (2, 1, {"test": 1})
    (row,) = rows(recipe)
    assert (row["exposure_id"], row["rows"][row["label"]]) == (earlier.exposure_id, 1)
    lists = samples.load(recipe.at("exposures"), histories.load(recipe.root))
    assert lists.users.tolist() == [0]
    assert lists.states[0].profile.tolist() == [np.float32(172.5)], "as it was served"
    forget.forget(postgres.url(recipe.store), "tiny", "old")
    assert samples.run(recipe)["rows"] == 0


def test_what_the_log_has_of_a_live_event_is_no_choice_from_a_later_list(shop: tuple[Config, Connections]) -> None:
    recipe, opened = shop
    first, later = (of(None, user_id="old", served_at=SHOWN + timedelta(minutes=minute)) for minute in (0, 5))
    exposures.write(opened, [first, later])
    at = SHOWN + timedelta(minutes=10)  # of P1, in the log
    tell(opened, ("old", "P1", first.exposure_id), at=at - timedelta(seconds=2), who="user_id", kind="purchase")
    samples.run(recipe)
    assert [(row["exposure_id"], row["rows"]) for row in rows(recipe)] == [(first.exposure_id, [2, 1, 0])]


def test_what_users_chose_from_lists_of_clients_is_theirs(shop: tuple[Config, Connections]) -> None:
    recipe, opened = shop
    before, tested = of("v", served_at=SHOWN), of("v", served_at=NOW - timedelta(days=2))
    others = of(None, user_id="other")
    exposures.write(opened, [before, tested, others])
    at = NOW - timedelta(days=2) + timedelta(minutes=10)  # the test event of `old` is on P2
    tell(opened, ("old", "P1", before.exposure_id), at=SHOWN + timedelta(minutes=10), who="user_id", kind="purchase")
    tell(opened, ("v", "P0", None))
    tell(opened, ("v", "P2", tested.exposure_id), at=at - timedelta(minutes=5))
    tell(opened, ("old", "P2", tested.exposure_id), at=at, who="user_id", kind="purchase")
    tell(opened, ("old", "P0", others.exposure_id), who="user_id")
    done = samples.run(recipe)
    assert (done["with_choice"], done["left_out"]) == (3, {"several_users": 1, "test": 1})
    assert [(row["exposure_id"], row["user_id"], row["label"]) for row in rows(recipe)] == [
        (before.exposure_id, "old", 1),
        (before.exposure_id, "old", 1),
    ]
    lists = samples.load(recipe.at("exposures"), histories.load(recipe.root))
    assert lists.users.tolist() == [0, 0], "as the ranker finds those who choose the epoch"


def test_without_lists_there_are_no_samples(shop: tuple[Config, Connections]) -> None:
    recipe, _ = shop
    done = samples.run(recipe)
    assert (done["lists"], done["rows"]) == (0, 0)
