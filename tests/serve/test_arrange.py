"""The order of a list: what every arrangement keeps, and MMR against its definition."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.recommend.arrange import Cap, arrange

RNG = np.random.default_rng(3)
MOST = 24
VECTORS = RNG.normal(size=(MOST, 6)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


@st.composite
def asked(draw: st.DrawFn) -> dict[str, Any]:
    """Candidates and rules of every kind."""
    size = draw(st.integers(0, MOST))
    k = draw(st.integers(1, MOST + 4))
    places = draw(st.lists(st.integers(0, k - 1), max_size=min(4, size), unique=True))
    pinned = draw(st.permutations(range(size)))[: len(places)]
    values = st.lists(st.integers(-1, 3), min_size=2 * size, max_size=2 * size)
    return {
        "relevance": np.array(draw(st.lists(st.floats(0, 2), min_size=size, max_size=size)), np.float64),
        "vectors": VECTORS[:size],
        "k": k,
        "diversity": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "pins": dict(zip(places, pinned, strict=True)),
        "buried": np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool),
        "caps": [
            Cap(np.array(draw(values), np.int32).reshape(size, 2), draw(st.integers(1, 3)))
            for _ in range(draw(st.integers(0, 2)))
        ],
    }


@settings(max_examples=200)
@given(asked())
def test_every_list_keeps_what_rules_promise(given_: dict[str, Any]) -> None:
    order = arrange(**given_)
    places, size, k = order.places.tolist(), len(given_["relevance"]), given_["k"]
    pins, buried, caps = given_["pins"], given_["buried"], given_["caps"]
    assert len(places) == len(set(places)) == min(k, size)
    for place, candidate in pins.items():
        enough = size - len(pins) + sum(other < place for other in pins) >= place
        assert (places.index(candidate) == place) if enough else (candidate in places)
    counted: dict[tuple[int, int], int] = {}
    for candidate in pins.values():
        _count(counted, caps, candidate)
    level = 0
    for candidate, over in zip(places, order.over_cap.tolist(), strict=True):
        if candidate in pins.values():
            assert not over
            continue
        full = any(counted.get(key, 0) >= cap.most for cap, key in _keys(caps, candidate))
        assert over == full
        assert 2 * over + buried[candidate] >= level, "something weaker stood above"
        level = 2 * over + int(buried[candidate])
        _count(counted, caps, candidate)
    again = arrange(**given_)
    assert again.places.tolist() == places


def _keys(caps: list[Cap], candidate: int) -> list[tuple[Cap, tuple[int, int]]]:
    return [
        (cap, (number, value)) for number, cap in enumerate(caps) for value in set(cap.codes[candidate].tolist()) - {-1}
    ]


def _count(counted: dict[tuple[int, int], int], caps: list[Cap], candidate: int) -> None:
    for _, key in _keys(caps, candidate):
        counted[key] = counted.get(key, 0) + 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=MOST), st.integers(1, MOST))
def test_without_rules_the_order_is_that_of_relevance(relevance: list[float], k: int) -> None:
    order = arrange(
        np.array(relevance),
        VECTORS[: len(relevance)],
        k=k,
        diversity=0.0,
        pins={},
        buried=np.zeros(len(relevance), bool),
        caps=[],
    )
    assert order.places.tolist() == np.argsort(-np.array(relevance), kind="stable")[:k].tolist()
    assert not order.diversified.any()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=MOST), st.floats(0.05, 0.95))
def test_diversity_is_maximal_marginal_relevance(relevance: list[float], weight: float) -> None:
    size = len(relevance)
    found = arrange(
        np.array(relevance),
        VECTORS[:size],
        k=size,
        diversity=weight,
        pins={},
        buried=np.zeros(size, bool),
        caps=[],
    ).places.tolist()
    cosine = VECTORS[:size].astype(np.float64) @ VECTORS[:size].T.astype(np.float64)
    for place, chosen in enumerate(found):
        value = {
            other: (1 - weight) * relevance[other]
            - weight * max((cosine[other, above] for above in found[:place]), default=0.0)
            for other in found[place:]
        }
        assert value[chosen] >= max(value.values()) - 1e-9
