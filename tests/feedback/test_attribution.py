"""An event follows from the list it names, else from the latest list that showed its product, else from none."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rec.feedback.attribution import Followed, follow, once
from rec.index.exposures import SHOWN
from rec.index.live_events import FOLLOWING

START = datetime(2026, 5, 1, tzinfo=UTC)
WINDOW = timedelta(hours=24)


def shown(hour: float, products: str, *, user: str | None = "ann", client: str | None = None) -> dict[str, Any]:
    """A list of one-letter products."""
    at = START + timedelta(hours=hour)
    return {"user_id": user, "client_id": client, "served_at": at, "products": list(products)}


def event(hour: float, product: str, *, of: int | None = None, user: str | None = "ann", client: str | None = None,
          kind: str = "view") -> dict[str, Any]:  # fmt: skip
    """An event of a one-letter product, that names list number `of`."""
    told = {"user_id": user, "client_id": client, "product_id": product, "event": kind}
    named = None if of is None else f"list {of}"
    return {**told, "at": START + timedelta(hours=hour), "exposure_id": named, "event_id": f"{hour} {product}"}


def followed(lists: list[dict[str, Any]], events: list[dict[str, Any]]) -> Followed:
    """What follows from the lists, which are named by their order."""
    named = [{**each, "exposure_id": f"list {row}", "arm": None} for row, each in enumerate(lists)]
    return follow(pa.Table.from_pylist(named, SHOWN), pa.Table.from_pylist(events, FOLLOWING), WINDOW)


def triples(found: Followed) -> list[tuple[int, int, int]]:
    """(list, place, event) of each."""
    return list(zip(found.lists.tolist(), found.positions.tolist(), found.events.tolist(), strict=True))


def test_a_named_list_has_the_event_and_others_leave_it_open() -> None:
    lists = [shown(0, "abc"), shown(1, "cab"), shown(2, "xay")]
    found = followed(lists, [event(3, "a", of=0), event(200, "c", of=1)])
    assert triples(found) == [(0, 0, 0), (1, 0, 1)]
    assert found.unclear == {(1, 1), (2, 1)}


def test_without_a_name_it_is_the_latest_list_within_the_window() -> None:
    lists = [shown(0, "abc"), shown(1, "cab"), shown(2, "xyz")]
    assert triples(followed(lists, [event(3, "a"), event(1.0, "b"), event(25.5, "a"), event(0.5, "z")])) == [
        (1, 1, 0), (1, 2, 1),
    ]  # fmt: skip
    assert followed(lists, [event(3, "a")]).unclear == {(0, 0)}
    assert triples(followed(lists, [event(25, "c")])) == [(1, 0, 0)], "the window's last moment"


def test_a_named_list_that_did_not_show_it_counts_as_none_named() -> None:
    lists = [shown(0, "abc"), shown(1, "xyz")]
    assert triples(followed(lists, [event(2, "a", of=1)])) == [(0, 0, 0)]


def test_what_follows_from_a_list_that_is_not_there_is_no_other_list_s() -> None:
    found = followed([shown(0, "abc"), shown(1, "cb")], [event(2, "b", of=9), event(200, "a", of=9)])
    assert triples(found) == []
    assert found.unclear == {(0, 1), (1, 1)}, "within the window"


def test_nobody_follows_from_another_shopper_s_list() -> None:
    lists = [shown(0, "a", user="ann"), shown(0, "a", user=None, client="ann"), shown(1, "a", user=None)]
    assert triples(followed(lists, [event(2, "a", user="bob")])) == []
    assert triples(followed(lists, [event(2, "a", user=None, client="ann")])) == [(1, 0, 0)]
    both = [shown(0, "ab", user="ann", client="v")]
    assert triples(followed(both, [event(1, "a"), event(1, "b", user=None, client="v")])) == [(0, 0, 0), (0, 1, 1)]


def test_what_is_chosen_from_both_lists_is_clear_in_both() -> None:
    found = followed([shown(0, "ab"), shown(1, "ab")], [event(0.5, "a"), event(2, "a")])
    assert triples(found) == [(0, 0, 0), (1, 0, 1)]
    assert found.unclear == frozenset()


def test_an_event_that_the_log_has_as_well_is_there_once_and_keeps_its_list() -> None:
    lists = [shown(0, "ab"), shown(1, "ab")]
    second = 1 / 3600
    told = [event(2, "a", of=0), event(2, "b", user=None, client="ann")]
    logged = [
        event(2 + 60 * second, "a"), event(2 - 60 * second, "a"), event(2 + 61 * second, "a"), event(2, "b"),
        event(2, "a", user="bob"), event(2, "a", kind="cart"),
    ]  # fmt: skip
    tables = [pa.Table.from_pylist(rows, FOLLOWING) for rows in (told, logged)]
    assert once(*tables).to_pylist() == [*told, *logged[2:]]
    none = FOLLOWING.empty_table()
    assert (once(none, tables[1]), once(tables[0], none), once(none, none)) == (tables[1], tables[0], none)
    found = followed(
        lists, once(*(pa.Table.from_pylist(rows, FOLLOWING) for rows in (told[:1], logged[:1]))).to_pylist()
    )
    assert triples(found) == [(0, 0, 0)]
    assert found.unclear == {(1, 0)}


def test_nothing_shown_or_nothing_done() -> None:
    assert triples(followed([], [event(0, "a")])) == triples(followed([shown(0, "a")], [])) == []
    assert triples(followed([shown(0, "")], [event(1, "a")])) == []


HOURS = st.integers(0, 60).map(lambda halves: halves / 2)
WHO = st.sampled_from(
    [{"user": "ann"}, {"user": "bob"}, {"user": None, "client": "ann"}, {"user": None, "client": "v"}]
)
LISTS = st.lists(st.tuples(HOURS, st.text("abcd", max_size=4).map(lambda text: "".join(dict.fromkeys(text))), WHO))
EVENTS = st.lists(st.tuples(HOURS, st.sampled_from("abcde"), st.none() | st.integers(0, 5), WHO), max_size=12)


@given(lists=LISTS, events=EVENTS)
def test_every_event_follows_as_the_slow_rule_says(lists: list[Any], events: list[Any]) -> None:
    lists = sorted((shown(hour, products, **who) for hour, products, who in lists), key=lambda each: each["served_at"])
    events = sorted((event(hour, product, of=of, **who) for hour, product, of, who in events), key=lambda e: e["at"])
    expected, seen = [], set()
    for number, told in enumerate(events):
        had = [
            row for row, each in enumerate(lists)
            if told["product_id"] in each["products"]
            and timedelta() <= told["at"] - each["served_at"] <= WINDOW
            and any(told[who] is not None and told[who] == each[who] for who in ("user_id", "client_id"))
        ]  # fmt: skip
        named = [
            row for row, each in enumerate(lists)
            if told["exposure_id"] == f"list {row}" and told["product_id"] in each["products"]
        ]  # fmt: skip
        away = told["exposure_id"] is not None and int(told["exposure_id"].split()[1]) >= len(lists)
        origin = (named or ([] if away else had[-1:]) or [None])[0]
        if origin is not None:
            expected.append((origin, lists[origin]["products"].index(told["product_id"]), number))
        seen |= {(row, lists[row]["products"].index(told["product_id"])) for row in had if row != origin}
    found = followed(lists, events)
    assert triples(found) == expected
    assert found.unclear == seen - {(row, position) for row, position, _ in expected}
