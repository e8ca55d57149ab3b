"""Lists are logged as they were shown, requests never wait for it, and the ranker learns what it was really asked."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest

from rec import histories, postgres
from rec.bundle import Bundle
from rec.config import Config
from rec.errors import ConfigError, DatabaseError
from rec.features import items as item_features
from rec.feedback import samples
from rec.index import exposures, live_events
from rec.index.connections import Connections
from rec.index.exposures import Exposure
from rec.index.live_events import LiveEvent
from rec.recommend.chain import Chain
from rec.recommend.front import microseconds
from rec.recommend.passage import Passage
from rec.recommend.request import Choice, Request
from rec.recommend.resolve import Resolver
from rec.recommend.rules import parse
from rec.recommend.shelf import Shelf
from rec.recommend.stopwatch import Stopwatch
from serve import exposures as logged
from serve.exposures import ExposureLog, Shop
from tests.bundle import tiny
from tests.ranker.features import compute

NOW = tiny.START + timedelta(days=20)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No list waits for others."""
    monkeypatch.setattr(logged, "FLUSH_S", 0)


def passed(chain: Chain, request: Request, rules: str = "") -> Passage:
    """What becomes of a request in the stages."""
    ruling = chain.rules.compiled(parse(rules, "test")) if rules else None
    return chain.walk(request, ruling, NOW, Stopwatch())


def shop_of(bundle: Bundle, **given: Any) -> Shop:
    """What lists of a bundle are logged with."""
    shelf = Shelf(bundle)
    return Shop.of(bundle, shelf, Resolver(bundle, shelf).profile_names)._replace(**given)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited a minute"
        time.sleep(0.01)


class Heard:
    """A log on the database of the shop, and what it told."""

    def __init__(self, connect: Callable[[], Connections]) -> None:
        self.counts = {"logged": 0, "dropped": 0}
        self.log = ExposureLog(connect, self._tell)

    def _tell(self, outcome: str, count: int) -> None:
        self.counts[outcome] += count


@pytest.fixture
def heard(published: Config) -> Iterator[Heard]:
    """A log with a connection of its own."""
    made = Heard(lambda: Connections(postgres.url(published.store), size=1))
    yield made
    made.log.close()


def stored(published: Config, *ids: str) -> list[Exposure]:
    """Exposures as the database has them."""
    with psycopg.connect(postgres.url(published.store)) as connection:
        return list(exposures.whole(connection, ids))


def test_a_list_is_logged_as_it_was_shown(chain: Chain, published: Config, heard: Heard) -> None:
    request = Request(
        user_id="stranger", client_id="v1", history=(Choice("P0003"), Choice("P0009", "cart")), k=7,
        context="a  red dress", profile={"height_cm": 171.0},
    )  # fmt: skip
    passage = passed(chain, request, "[[pin]]\nproduct = 'P0150'\nposition = 2\n[[bury]]\nprice_max = 40\n")
    shop = shop_of(chain.bundle, candidates=20)
    heard.log.note(shop, name := exposures.new_id(), datetime.now(UTC), passage, ["prices_unavailable"])
    heard.log.close()
    assert heard.counts == {"logged": 1, "dropped": 0}
    (found,) = stored(published, name)
    listed, candidates = passage.arranged.ranked, passage.candidates
    assert found.products == [tiny.product_id(row) for row in listed.rows]
    assert found.products[1] == "P0150"
    np.testing.assert_array_equal(candidates.rows[found.places], listed.rows)
    np.testing.assert_array_equal(candidates.scores[found.places], found.retrieval_scores)
    np.testing.assert_array_equal(found.scores, listed.scores)
    np.testing.assert_array_equal(found.probabilities, listed.probabilities)
    np.testing.assert_array_equal(found.sources, listed.sources)
    np.testing.assert_array_equal(found.cooccurrence, candidates.cooccurrence[found.places])
    assert found.candidates == [tiny.product_id(row) for row in candidates.rows[:20]]
    np.testing.assert_array_equal(found.candidate_scores, candidates.scores[:20])
    np.testing.assert_array_equal(found.candidate_sources, candidates.sources[:20])
    assert (found.retrieved, found.k, found.degraded) == (len(candidates.rows), 7, ["prices_unavailable"])
    assert (found.catalogue, found.bundle, found.arm) == (published.name, chain.bundle.id, None)
    assert (found.user_id, found.client_id, found.context) == ("stranger", "v1", "a red dress")
    assert (found.history, found.history_events.tolist()) == (["P0003", "P0009"], [1, 2])
    assert (found.at, found.profile) == (passage.began.at, {"height_cm": 171.0})
    assert abs(found.served_at - datetime.now(UTC)) < timedelta(minutes=5)


def test_requests_never_wait_and_what_has_no_room_is_counted(
    chain: Chain, published: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logged, "WAITING", 50)
    monkeypatch.setattr(logged, "AT_ONCE", 20)
    held = threading.Event()

    def connect() -> Connections:
        held.wait(60)
        return Connections(postgres.url(published.store), size=1)

    heard, passage, shop = Heard(connect), passed(chain, Request(k=10)), shop_of(chain.bundle)
    spent = []
    for _ in range(200):
        started = time.perf_counter()
        heard.log.note(shop, exposures.new_id(), datetime.now(UTC), passage, [])
        spent.append(time.perf_counter() - started)
    assert heard.counts["logged"] == 0
    assert 200 - 50 - 20 <= heard.counts["dropped"] <= 200 - 50
    assert sorted(spent)[100] < 1e-4
    held.set()
    heard.log.close()
    assert heard.counts["logged"] + heard.counts["dropped"] == 200


def test_lists_that_postgres_does_not_take_are_counted_and_later_ones_are_logged(
    chain: Chain, published: Config
) -> None:
    opened: list[Any] = [DatabaseError("it is away"), KeyError("unforeseen"), postgres.url(published.store)]

    def connect() -> Connections:
        found = opened.pop(0)
        if isinstance(found, Exception):
            raise found
        return Connections(found, size=1)

    heard, passage, shop = Heard(connect), passed(chain, Request(k=3)), shop_of(chain.bundle)
    for count in (1, 2):
        heard.log.note(shop, exposures.new_id(), datetime.now(UTC), passage, [])
        until(lambda count=count: heard.counts["dropped"] == count)  # type: ignore[misc]  # of now, not of later
    heard.log.note(shop, once := exposures.new_id(), datetime.now(UTC), passage, [])
    until(lambda: heard.counts["logged"] == 1)
    heard.log.note(shop, once, datetime.now(UTC), passage, [])  # that it has already
    until(lambda: heard.counts["dropped"] == 3)
    heard.log.note(shop, last := exposures.new_id(), datetime.now(UTC), passage, [])
    heard.log.close()
    assert heard.counts == {"logged": 2, "dropped": 3}
    assert len(stored(published, once, last)) == 2


def test_a_share_of_lists_is_logged(chain: Chain, heard: Heard) -> None:
    passage = passed(chain, Request(k=3))
    for share in (0.0, 0.5):
        shop = shop_of(chain.bundle, share=share)
        for _ in range(400):
            heard.log.note(shop, exposures.new_id(), datetime.now(UTC), passage, [])
        if not share:
            assert heard.log._thread is None, "nothing is started"
    heard.log.close()
    assert heard.counts["dropped"] == 0
    assert 120 < heard.counts["logged"] < 280


def test_lists_after_the_end_are_counted(chain: Chain, heard: Heard) -> None:
    passage, shop = passed(chain, Request(k=3)), shop_of(chain.bundle)
    heard.log.note(shop, exposures.new_id(), datetime.now(UTC), passage, [])
    heard.log.close()
    heard.log.note(shop, exposures.new_id(), datetime.now(UTC), passage, [])
    assert heard.counts == {"logged": 1, "dropped": 1}


def test_the_server_s_share_wins_over_the_bundle_s(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exposures.share() is None
    monkeypatch.setenv("REC_LISTS", "0")
    heard = Heard(lambda: pytest.fail("nothing is written"))
    heard.log = ExposureLog(heard.log._connect, heard.log._tell, exposures.share())
    for _ in range(20):
        heard.log.note(
            shop_of(chain.bundle, share=1.0), exposures.new_id(), datetime.now(UTC), passed(chain, Request(k=3)), []
        )
    assert heard.log._thread is None, "nothing is started"
    for given in ("none", "-0.1", "1.5", "nan"):
        monkeypatch.setenv("REC_LISTS", given)
        with pytest.raises(ConfigError, match=f"REC_LISTS is '{given}': give the share of lists"):
            exposures.share()


def test_of_nobody_s_list_nothing_is_logged_that_was_told(chain: Chain, published: Config, heard: Heard) -> None:
    told: dict[str, Any] = {"history": (Choice("P0003"),), "context": "red", "profile": {"height_cm": 171.0}}
    names = [exposures.new_id() for _ in range(3)]
    for name, who in zip(names, ({}, {"user_id": "stranger"}, {"client_id": "v3"}), strict=True):
        heard.log.note(shop_of(chain.bundle), name, datetime.now(UTC), passed(chain, Request(k=3, **told, **who)), [])
    heard.log.close()
    nobody, *named = stored(published, *names)
    assert (nobody.context, nobody.history, dict(nobody.profile)) == ("", [], {})
    assert len(nobody.history_events) == len(nobody.history_ages) == 0
    assert len(nobody.products) == 3
    for each in named:
        assert (each.context, each.history, each.profile) == ("red", ["P0003"], {"height_cm": 171.0})


def test_samples_have_the_features_that_were_served(chain: Chain, published: Config, heard: Heard) -> None:
    """From the request to what trains: numbers are those that the ranker was asked with, to the bit."""
    h = histories.load(published.root)
    items = item_features.load(published.at("features"), chain.bundle.item_vectors())
    request = Request(
        client_id="learner", history=(Choice("P0003"), Choice("P0009", "cart")), k=6, context="red",
        profile={"height_cm": 171.0},
    )  # fmt: skip
    passage = passed(chain, request)
    heard.log.note(shop_of(chain.bundle, candidates=2), name := exposures.new_id(), datetime.now(UTC), passage, [])
    cold = passed(chain, Request(user_id="nobody-known", k=4))
    heard.log.note(
        shop_of(chain.bundle), other := exposures.new_id(), datetime.now(UTC), cold, ["user_tower_unavailable"]
    )
    heard.log.close()
    (found, unscored) = stored(published, name, other)
    at = datetime.now(UTC) - timedelta(days=2)
    told = [
        ("w1", found.products[4], "learner", None),  # no name: the latest list
        ("w2", found.products[1], "learner", name),
        ("w3", found.products[1], "learner", name),
        ("w4", unscored.products[0], "elsewhere", other),
    ]
    opened = Connections(postgres.url(published.store), size=1)
    taken = live_events.store(opened, published.name, [
        LiveEvent(event_id=event_id, client_id=client_id, product_id=product, event="view",
                  at=at + timedelta(minutes=5), exposure_id=exposure_id)
        for event_id, product, client_id, exposure_id in told
    ])  # fmt: skip
    assert len(taken.stored) == 4
    with opened.use() as connection:
        connection.execute("UPDATE exposures SET served_at = %s WHERE exposure_id = ANY(%s)", (at, [name, other]))
        connection.execute("UPDATE live_events SET received_at = %s WHERE event_id LIKE 'w_'", (at,))
    opened.close()

    done = samples.run(published)
    assert (done["lists"], done["with_choice"], done["rows"]) == (2, 2, 2)
    assert done["left_out"] == {"unranked": 1}
    assert done["position_of_choice"] == 3.5
    assert samples.run(published)["skipped"]
    lists = samples.load(published.at("exposures"), h)
    listed = passage.arranged.ranked.rows
    served = compute(items, passage.began.state, passage.candidates, microseconds(passage.began.at))
    for number, (chosen, left_out) in enumerate(((1, 4), (4, 1))):
        known = np.sort(np.delete(found.places, left_out))
        np.testing.assert_array_equal(lists.kept[number], known)
        assert known[lists.labels[number]] == found.places[chosen]
        rows = lists.candidates[number].rows[lists.kept[number]]
        assert set(rows.tolist()) == set(np.delete(listed, left_out).tolist())
        assert (lists.at[number], lists.users[number]) == (microseconds(passage.began.at), -1)
        made = compute(items, lists.states[number], lists.candidates[number], int(lists.at[number]))
        for name_ in ("sparse", "varlen", "dense"):
            np.testing.assert_array_equal(getattr(made, name_)[known], getattr(served, name_)[known])
