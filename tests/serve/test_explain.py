"""Why X is shown or not shown to Y: the explanation says what the list shows, stage by stage."""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec.index.search import Filters
from rec.recommend.chain import Chain
from rec.recommend.passage import Explanation
from rec.recommend.request import Choice, Request
from rec.recommend.rules import parse
from tests.bundle import tiny

NOW = tiny.START + timedelta(days=20)
SHOPPER = Request(history=(Choice("P0003"), Choice("P0007")), k=5)


def why(chain: Chain, product_id: str, request: Request = SHOPPER, source: str = "") -> Explanation:
    """The explanation of one product under rules."""
    ruling = chain.rules.compiled(parse(source, "test")) if source else None
    return chain.explain(request, product_id, ruling, NOW)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    product=st.integers(0, tiny.ITEMS - 1),
    history=st.lists(st.integers(0, tiny.ITEMS - 1), max_size=4),
    category=st.none() | st.sampled_from(tiny.CATEGORIES),
    excluded=st.sets(st.integers(0, tiny.ITEMS - 1), max_size=4),
    k=st.integers(1, 70),
)
def test_every_explanation_agrees_with_the_list(
    chain: Chain, product: int, history: list[int], category: str | None, excluded: set[int], k: int
) -> None:
    request = Request(
        history=tuple(Choice(tiny.product_id(row)) for row in history),
        filters=Filters(categories=() if category is None else (category,)),
        exclude=tuple(tiny.product_id(row) for row in excluded),
        k=k,
    )
    shown = [item["product_id"] for item in chain.answer(request, None, NOW).items]
    found = why(chain, tiny.product_id(product), request)
    assert (found.outcome == "shown") == (found.product_id in shown)
    if found.outcome == "shown":
        assert shown[found.place - 1] == found.product_id
        assert found.item["reasons"]
    elif product in excluded or product in history:
        assert found.outcome == "excluded"
        assert found.excluded_by == (["request"] if product in excluded else ["seen"])
    elif product % 10 == 9:
        assert found.outcome == "unavailable"
    elif category is not None and tiny.category(product) != category:
        assert found.outcome == "filtered"
    else:
        assert found.outcome in ("ranked_below", "not_retrieved")
    assert (found.ranking is not None) == (found.outcome in ("shown", "ranked_below"))
    assert 1 <= found.nearness.rank <= found.nearness.of == tiny.ITEMS
    if found.ranking is not None:
        assert (found.ranking.rank <= k) == (found.outcome == "shown")
        assert (found.ranking.score >= found.ranking.last_shown) or found.outcome == "ranked_below"


def test_what_is_not_retrieved_is_far(chain: Chain) -> None:
    ranks = {}
    for row in range(0, tiny.ITEMS, 8):
        found = why(chain, tiny.product_id(row))
        if found.outcome == "not_retrieved":
            ranks[row] = found.nearness.rank
            assert found.nearness.last_candidate is not None
    assert ranks
    assert min(ranks.values()) > SHOPPER.k
    assert why(chain, "gone").outcome == "unknown_product"
    assert why(chain, "gone").nearness is None


def test_rules_are_named(chain: Chain) -> None:
    first, second, *_ = (item["product_id"] for item in chain.answer(SHOPPER, None, NOW).items)
    excluded = why(chain, first, source=f"[[exclude]]\nproducts = ['{first}']")
    assert (excluded.outcome, excluded.excluded_by, excluded.rules) == ("excluded", ["rule"], ["exclude 1"])
    buried = why(chain, first, source=f"[[bury]]\nproducts = ['{first}']")
    assert (buried.outcome, buried.rules, buried.ranking.rank) == ("moved_by_rules", ["bury 1"], 1)
    pin = "[[pin]]\nproduct = 'P0012'\nposition = 1"
    pinned = why(chain, "P0012", source=pin)
    assert (pinned.outcome, pinned.place, pinned.rules) == ("shown", 1, ["pin 1"])
    last = chain.answer(SHOPPER, None, NOW).items[-1]["product_id"]
    if last != "P0012":
        displaced = why(chain, last, source=pin)
        assert (displaced.outcome, displaced.rules) == ("moved_by_rules", ["pin 1"])
    declined = Request(history=SHOPPER.history, k=5, rules=False)
    assert why(chain, second, declined, source=f"[[exclude]]\nproducts = ['{second}']").outcome == "shown"


def test_a_stored_shopper_is_explained_too(chain: Chain) -> None:
    assert why(chain, "P0003", Request(user_id="u03", k=5)).excluded_by == ["seen"]
    with pytest.raises(Exception, match="unknown products"):
        why(chain, "P0003", Request(history=(Choice("gone"),)))
