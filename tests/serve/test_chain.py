"""The request path without Ray: what the answer holds, for shoppers of every kind."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec.config import Config
from rec.evaluate import chain_speed
from rec.index.catalogue import Known, PastEvent
from rec.index.search import Filters
from rec.recommend.chain import Chain
from rec.recommend.front import microseconds
from rec.recommend.request import Answer, Choice, Request
from rec.recommend.resolve import STALE, Resolver, UnknownProducts, moment
from rec.recommend.score import Unranked
from rec.recommend.shelf import Shelf
from rec.recommend.stopwatch import Stopwatch
from rec.recommend.why import matched
from rec.retrieval import Candidates
from tests.bundle import tiny


def ids(answer: object) -> list[str]:
    """Product ids of an answer."""
    return [item["product_id"] for item in answer.items]  # type: ignore[attr-defined]


def named(answer: object) -> set[str]:
    """All sources that an answer names."""
    return {source for item in answer.items for source in item["sources"]}  # type: ignore[attr-defined]


def row(product_id: str) -> int:
    """Item row of a product id of the tiny shop."""
    return int(product_id[1:])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(st.integers(0, tiny.ITEMS - 1), max_size=12),
    user=st.none() | st.sampled_from(["u00", "u05", "stranger"]),
    category=st.none() | st.sampled_from(tiny.CATEGORIES),
    k=st.integers(1, 100),
    height=st.none() | st.floats(140, 210),
)
def test_every_answer_keeps_its_promises(
    chain: Chain, history: list[int], user: str | None, category: str | None, k: int, height: float | None
) -> None:
    told = tuple(Choice(tiny.product_id(item)) for item in history)
    answer = chain.recommend(
        Request(
            user_id=user,
            history=told,
            profile={} if height is None else {"height_cm": height},
            filters=Filters(categories=() if category is None else (category,)),
            k=k,
        )
    )
    found = ids(answer)
    assert len(found) == len(set(found)) <= k
    assert answer.underfilled == (len(found) < k)
    assert not set(found) & {choice.product_id for choice in told}, "seen products come back"
    assert all(row(name) % 10 != 9 for name in found), "a product without stock"
    assert category is None or all(tiny.category(row(name)) == category for name in found)
    scores = [item["score"] for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    assert np.isfinite(scores).all()
    chances = [item["probability"] for item in answer.items]
    assert chances == sorted(chances, reverse=True)
    assert all(0 <= chance <= 1 for chance in chances)
    assert sum(chances) <= 1 + 1e-5, "an uncalibrated ranker's are a softmax over all candidates"
    assert all(item["reasons"] for item in answer.items)
    cold = not history and user != "u00" and user != "u05"
    assert all((item["because"] is None) == cold for item in answer.items)
    assert all(item["sources"] for item in answer.items)
    assert all(("popular" in item["sources"]) <= cold for item in answer.items)
    assert answer.bundle == chain.bundle.id
    assert set(answer.milliseconds) == {"state", "user_tower", "retrieval", "ranking", "rules", "explanation", "total"}


def test_a_cold_shopper_gets_popular_products_too(chain: Chain) -> None:
    answer = chain.recommend(Request(k=40))
    assert named(answer) == {"ann", "popular"}
    for item in answer.items:
        expected = "popular" if "popular" in item["sources"] else "for_anyone"
        assert item["reasons"] == [expected], "no taste of theirs is claimed"
    said = chain.recommend(Request(k=40, context="a linen dress for a beach wedding"))
    assert not any("for_anyone" in item["reasons"] for item in said.items)


def test_popular_products_pass_the_filter(chain: Chain) -> None:
    answer = chain.recommend(Request(k=20, filters=Filters(categories=("coat",), price_max=80.0)))
    assert named(answer) == {"ann", "popular"}
    assert all(tiny.category(row(name)) == "coat" and row(name) <= 70 for name in ids(answer))


def test_what_others_chose_too_says_so(chain: Chain) -> None:
    answer = chain.recommend(Request(history=(Choice("P0006"), Choice("P0012")), k=60))
    together = [item for item in answer.items if "cooccurrence" in item["sources"]]
    assert named(answer) == {"ann", "item", "cooccurrence"}
    assert all("chosen_together" in item["reasons"] for item in together)
    assert len(together) == sum("chosen_together" in item["reasons"] for item in answer.items)
    assert all(row(item["product_id"]) % 6 == 0 for item in together), "stored shoppers buy one colour"


def test_the_cause_is_the_nearest_product_of_the_history(chain: Chain) -> None:
    history = [1, 2, 40]
    answer = chain.recommend(Request(history=tuple(Choice(tiny.product_id(item)) for item in history), k=20))
    vectors = chain.bundle.item_vectors()
    for item in answer.items:
        cosine = vectors[history] @ vectors[row(item["product_id"])]
        cause = item["because"]
        assert row(cause["product_id"]) == history[int(cosine.argmax())]
        assert cause["cosine"] == pytest.approx(float(cosine.max()), abs=1e-5)
        assert ("similar_to_history" in item["reasons"]) == (cause["cosine"] >= 0.3)
        theirs = row(cause["product_id"])
        shared = {(m["key"], m["value"]) for m in cause["matched"] if m["kind"] == "std"}
        same = tiny.category(theirs) == tiny.category(row(item["product_id"]))
        assert (("category", tiny.category(theirs)) in shared) == same


def test_shared_words_of_open_values_match() -> None:
    one = {"std": {"colour": ["red", "unknown"]}, "re": {"fabric": ["Soft Touch", "stiff"], "vibe": ["soft"]}}
    other = {"std": {"colour": ["unknown", "red"]}, "re": {"fabric": ["a soft hand"]}}
    assert matched(one, other) == [
        {"kind": "std", "key": "colour", "value": "red"},
        {"kind": "re", "key": "fabric", "value": "Soft Touch"},
    ]


def test_context_and_profile_change_the_answer_and_say_so(chain: Chain) -> None:
    plain = chain.recommend(Request(history=(Choice("P0003"),), k=30))
    said = chain.recommend(Request(history=(Choice("P0003"),), k=30, context="a linen dress for a beach wedding"))
    tall = chain.recommend(Request(history=(Choice("P0003"),), k=30, profile={"height_cm": 190.0}))
    assert [i["score"] for i in plain.items] != [i["score"] for i in said.items] != [i["score"] for i in tall.items]
    reasons = [{code for item in answer.items for code in item["reasons"]} for answer in (plain, said, tall)]
    assert "fits_context" in reasons[1] - reasons[0]
    assert "fits_profile" in reasons[2] - reasons[0]


def test_a_known_user_is_their_stored_history_and_profile(chain: Chain) -> None:
    start = tiny.START
    told = tuple(
        Choice(tiny.product_id(item), "purchase", start + timedelta(days=step, seconds=3))
        for step, item in enumerate([3, 9, 15, 21, 27, 33])
    )
    stored = chain.recommend(Request(user_id="u03"))
    inline = chain.recommend(Request(history=told, profile={"height_cm": 163.0, "birth_year": 1983.0}))
    assert ids(stored) == ids(inline)
    assert [i["score"] for i in stored.items] == pytest.approx([i["score"] for i in inline.items], abs=1e-5)


@pytest.mark.parametrize("ago", [timedelta(-1), timedelta(0), timedelta(minutes=5), timedelta(days=3)])
def test_what_is_told_without_times_comes_after_what_is_stored(chain: Chain, ago: timedelta) -> None:
    at = tiny.START
    stored = [PastEvent(tiny.product_id(item), "purchase", at - ago - timedelta(days=2 - item)) for item in range(3)]
    told = Request(history=tuple(Choice(tiny.product_id(item)) for item in (7, 5, 8, 6)))
    state, _ = Resolver(chain.bundle, Shelf(chain.bundle)).resolve(told, Known(stored, {}), at)
    assert state.items.tolist() == [0, 1, 2, 7, 5, 8, 6]
    assert (np.diff(state.ages_s) <= 0).all()
    assert state.ages_s.min() >= 0


def test_fit_is_foretold_for_shoppers_of_whom_body_or_sizes_are_known(chain: Chain) -> None:
    told = (Choice("P0003", size="10", fit="small"), Choice("P0009", size="a size nobody had"))
    silent = tuple(Choice(choice.product_id) for choice in told)
    assert all(item["fit"] is None for item in chain.recommend(Request(k=20, history=silent)).items)
    answers = [
        chain.recommend(Request(k=20, history=told)),
        chain.recommend(Request(k=20, history=silent, profile={"height_cm": 190.0})),
        chain.recommend(Request(k=20, user_id="u03")),
    ]
    for answer in answers:
        for item in answer.items:
            fit = item["fit"]
            assert fit["size"] in tiny.SIZES
            assert fit["small"] + fit["fit"] + fit["large"] == pytest.approx(1, abs=2e-4)
    assert len({str([item["fit"] for item in answer.items]) for answer in answers}) == 3
    stored = chain.recommend(Request(k=20, user_id="u03", profile={"height_cm": 190.0}))
    assert [i["fit"] for i in stored.items] != [i["fit"] for i in answers[1].items], "earlier sizes count beside a body"


def test_sizes_that_are_told_move_no_product(chain: Chain) -> None:
    told = (Choice("P0003", size="10", fit="small"), Choice("P0009", size="12"))
    silent = tuple(Choice(choice.product_id) for choice in told)
    with_sizes, without = (chain.recommend(Request(k=30, history=history)).items for history in (told, silent))
    assert [{**item, "fit": None} for item in with_sizes] == without


def test_an_inline_profile_wins_over_the_stored_one(chain: Chain) -> None:
    stored = chain.recommend(Request(user_id="u03", k=20))
    other = chain.recommend(Request(user_id="u03", k=20, profile={"height_cm": 200.0}))
    assert [i["score"] for i in stored.items] != [i["score"] for i in other.items]


def test_exclusions_hold_and_may_name_what_is_gone(chain: Chain) -> None:
    first = ids(chain.recommend(Request(k=5)))
    again = ids(chain.recommend(Request(k=5, exclude=(*first, "long gone"))))
    assert not set(first) & set(again)


def test_unknown_products_of_the_history_are_all_named(chain: Chain) -> None:
    with pytest.raises(UnknownProducts) as caught:
        chain.recommend(Request(history=(Choice("P0001"), Choice("x"), Choice("y"), Choice("x"))))
    assert caught.value.product_ids == ["x", "y"]


def test_the_clock_counts_unless_the_data_is_stale(chain: Chain) -> None:
    until = chain.bundle.data_until
    fresh = until + STALE
    assert moment(chain.bundle, fresh) == fresh
    assert moment(chain.bundle, fresh + timedelta(seconds=1)) == until + timedelta(days=1)
    request = Request(user_id="u03", k=20)
    now, later = (chain.recommend(request, until + timedelta(days=days)) for days in (1, 50))
    assert [i["score"] for i in now.items] != [i["score"] for i in later.items]
    assert chain.recommend(request, datetime(2030, 1, 1, tzinfo=UTC)).items == now.items


def test_the_same_question_has_the_same_answer(chain: Chain) -> None:
    request = Request(user_id="u05", history=(Choice("P0003", "cart"),), context="red", k=50)
    assert chain.recommend(request).items == chain.recommend(request).items


@pytest.mark.parametrize("without", [{"user_tower"}, {"ranking"}, {"user_tower", "ranking"}])
def test_a_stage_that_is_left_out_leaves_the_order_of_the_one_before(chain: Chain, without: set[str]) -> None:
    told = (Choice("P0001"), Choice("P0007"))
    whole, found = (chain.recommend(Request(history=told, k=20, without=frozenset(each))) for each in ((), without))
    assert ids(found) != ids(whole)
    assert len(found.items) == 20
    assert all(item["probability"] is None for item in found.items), "nothing was ranked"
    assert named(found) == {"popular"} if "user_tower" in without else named(found) >= {"ann"}
    nearness = [item["retrieval_score"] for item in found.items]
    assert nearness == sorted(nearness, reverse=True)
    assert not {choice.product_id for choice in told} & set(ids(found))


@pytest.mark.usefixtures("connections")
def test_the_times_of_a_chain_are_those_of_its_stages(published: Config) -> None:
    taken = chain_speed.stages(published)
    assert {"state", "user_tower", "retrieval", "ranking", "rules", "explanation", "total"} == taken.keys()
    assert all(spent.p99 >= spent.p50 >= 0 for spent in taken.values())
    assert taken["total"].p50 > taken["retrieval"].p50 > 0
    assert taken["total"].p99 > taken["total"].p50


@pytest.mark.usefixtures("connections")
def test_chains_that_are_asked_in_turn_are_told_apart(published: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Chain] = []
    recommend = Chain.recommend

    def noted(chain: Chain, request: Request) -> Answer:
        asked.append(chain)
        return recommend(chain, request)

    monkeypatch.setattr(Chain, "recommend", noted)
    monkeypatch.setattr(chain_speed, "COUNT", 10)
    taken = chain_speed.in_turn({"small": published, "large": published})
    assert list(taken) == ["small", "large"]
    small, large = dict.fromkeys(asked)
    assert asked[-20:] == [small, small, large, large] * chain_speed.ROUNDS, "neither has a quieter hour than the other"


def test_requests_that_are_answered_together_are_answered_as_alone(chain: Chain) -> None:
    now = datetime.now(UTC)
    asked = [
        Request(user_id="u00"),
        Request(user_id="u05", context="a linen dress", profile={"height_cm": 171.0}),
        Request(history=(Choice("P0001"), Choice("P0007")), k=3),
        Request(),
    ]
    passages = [chain.walk(request, None, now, Stopwatch()) for request in asked]
    states = [passage.began.state for passage in passages]
    encoder, scorer = chain._stages._encoder, chain._stages._scorer
    for together, state in zip(encoder.encode(states), states, strict=True):
        (alone,) = encoder.encode([state])
        np.testing.assert_allclose(together.vector, alone.vector, atol=1e-5)
        assert together.without.keys() == alone.without.keys()
        for name, vector in alone.without.items():
            np.testing.assert_allclose(together.without[name], vector, atol=1e-5)
    found = [passage.candidates for passage in passages]
    nothing = Candidates(
        *(part[:0] for part in (found[0].rows, found[0].scores, found[0].sources, found[0].cooccurrence))
    )
    unranked = [
        Unranked(state, candidates, 10, microseconds(now))
        for state, candidates in zip([*states, states[0]], [*found, nothing], strict=True)
    ]
    for together, each in zip(scorer.rank(unranked), unranked, strict=True):
        (alone,) = scorer.rank([each])
        assert together.rows.tolist() == alone.rows.tolist()
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(together.probabilities, alone.probabilities, atol=1e-5)
    assert len(scorer.rank(unranked)[-1].rows) == 0
