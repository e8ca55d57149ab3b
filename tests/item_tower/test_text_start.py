"""Where the item tower starts: whitened texts, in its projection and in the rows of its tables."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec.models.item_inputs import ItemInputs, Ragged
from rec.models.item_tower import ItemTower, Shape
from rec.train import text_start
from rec.train.copurchase import Pairs

TEXT_WIDTH = 12
RNG = np.random.default_rng(7)


def _items(states: list[np.ndarray], std: list[list[int]], re: list[list[int]]) -> ItemInputs:
    """Items with texts of the token states float[T, w] and the ids given, all under key 1."""
    flat = [state.astype(np.float16).reshape(-1, TEXT_WIDTH) for state in states]
    return ItemInputs(
        std_key=Ragged.from_lists([[1] * len(ids) for ids in std]),
        std_id=Ragged.from_lists(std),
        re_key=Ragged.from_lists([[1] * len(ids) for ids in re]),
        re_id=Ragged.from_lists(re),
        groups=np.arange(len(states)),
        text_of_item=np.arange(len(states)),
        state_offsets=np.cumsum([0, *map(len, flat)], dtype=np.int64),
        states=np.concatenate(flat),
    )


def _texts(count: int, tokens: int = 3) -> list[np.ndarray]:
    """Token states that share one strong direction, as those of every text encoder do."""
    shared = 4.0 * np.eye(TEXT_WIDTH)[0]
    scale = np.linspace(2.0, 0.2, TEXT_WIDTH)
    return [shared + scale * RNG.standard_normal(TEXT_WIDTH) + np.zeros((tokens, 1)) for _ in range(count)]


def _started(shape: Shape, items: ItemInputs, pairs: Pairs | None = None) -> ItemTower:
    torch.manual_seed(0)
    tower = ItemTower(shape).eval()
    text_start.apply(tower, items, torch.device("cpu"), pairs)
    return tower


@torch.no_grad()
def _vectors(tower: ItemTower, items: ItemInputs) -> np.ndarray:
    return tower(items.batch(np.arange(len(items)))).numpy()


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the inner products of all pairs."""
    upper = np.triu_indices(len(one), 1)
    return float(np.corrcoef((one @ one.T)[upper], (other @ other.T)[upper])[0, 1])


def test_the_untrained_tower_places_products_by_their_whitened_texts(shape: Shape) -> None:
    items = _items(_texts(400), [[]] * 400, [[]] * 400)
    shape = replace(shape, width=32)
    found = _vectors(_started(shape, items), items)
    texts = items.text_vectors()
    centre, weight = text_start.whitening(texts, TEXT_WIDTH) or pytest.fail("the texts differ")
    whitened = (texts - centre) @ weight
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    torch.manual_seed(0)
    drawn = _vectors(ItemTower(shape).eval(), items)
    assert _alike(found, whitened) > 0.85
    assert _alike(found, texts) < 0.7  # the direction that all share is gone
    assert _alike(drawn, whitened) < 0.7


def test_many_vectors_become_white_and_few_stay_near_their_kin() -> None:
    many = RNG.standard_normal((20_000, TEXT_WIDTH)).astype(np.float32) * np.linspace(3, 1, TEXT_WIDTH)
    centre, weight = text_start.whitening(many.astype(np.float32), TEXT_WIDTH) or pytest.fail("they differ")
    made = (many - centre) @ weight
    np.testing.assert_allclose(np.cov(made.T), np.eye(TEXT_WIDTH), atol=0.02)
    kin = np.repeat(RNG.standard_normal((2, 40)), 4, axis=0) + 0.3 * RNG.standard_normal((8, 40))
    centre, weight = text_start.whitening(kin.astype(np.float32), 16) or pytest.fail("they differ")
    made = (kin - centre) @ weight
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    alike = made @ made.T
    own = alike[:4, :4][~np.eye(4, dtype=bool)]
    assert own.min() > 0.1 > alike[:4, 4:].max()  # without the noise all would be as far apart: -1/7


@given(n=st.integers(1, 6), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_vectors_give_finite_weights(n: int, width: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((n, TEXT_WIDTH)).astype(np.float32)
    found = text_start.whitening(vectors, width)
    assert (found is None) == (n == 1)
    if found is not None:
        centre, weight = found
        assert weight.shape == (TEXT_WIDTH, width)
        assert np.isfinite(weight).all()
        assert np.isfinite(centre).all()
        assert np.count_nonzero(np.abs(weight).max(0) > 0) <= min(n - 1, width, TEXT_WIDTH)


def test_the_row_of_an_id_is_the_mean_of_its_products_and_less_of_it_the_fewer(shape: Shape) -> None:
    texts = _texts(40)
    std = [[3, 3] if place < 10 else [] for place in range(40)]
    items = _items([*texts, np.zeros((0, TEXT_WIDTH))], [*std, [5]], [[4], *[[]] * 40])
    tower = _started(shape, items)
    said = tower.title(torch.from_numpy(items.text_means())).detach().numpy()
    scale = np.linalg.norm(items.text_means()[:40], axis=1)
    length = scale.mean()
    said[:40] = (said[:40] - tower.title.bias.detach().numpy()) * (length / scale)[:, None]
    said[:40] += tower.title.bias.detach().numpy()
    torch.manual_seed(0)
    drawn = ItemTower(shape)
    std_added = (tower.std_table.weight - drawn.std_table.weight).detach().numpy()
    re_added = (tower.re_table.weight - drawn.re_table.weight).detach().numpy()
    np.testing.assert_allclose(std_added[3], said[:10].mean(0) * 10 / 20, atol=2e-3)
    np.testing.assert_allclose(re_added[4], said[0] * 1 / 11, atol=2e-3)
    assert not tower.std_table.weight[0].any()  # padding
    assert not tower.re_table.weight[0].any()
    assert not std_added[5].any()  # its only product has no text
    assert not re_added[7].any()  # no product carries it
    assert torch.equal(tower.re_start, drawn.re_table.weight)


@pytest.mark.parametrize("texts", [[], [np.zeros((0, TEXT_WIDTH))] * 3, [np.ones((2, TEXT_WIDTH))] * 3])
def test_texts_that_tell_nothing_apart_leave_the_tower_as_it_was_drawn(shape: Shape, texts: list[np.ndarray]) -> None:
    items = _items(texts or [np.zeros((0, TEXT_WIDTH))], [[2]] * max(len(texts), 1), [[]] * max(len(texts), 1))
    torch.manual_seed(0)
    drawn = ItemTower(shape).state_dict()
    for name, weight in _started(shape, items).state_dict().items():
        assert torch.equal(weight, drawn[name]), name


def test_a_tower_wider_than_its_texts_starts_too(shape: Shape) -> None:
    items = _items(_texts(50), [[]] * 50, [[]] * 50)
    vectors = _vectors(_started(replace(shape, width=32), items), items)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_texts_of_no_product_leave_no_trace(shape: Shape) -> None:
    texts, lists = _texts(30), [[3]] * 20
    whole = _items(texts, [[3]] * 30, [[4]] * 30)
    other = _items([*texts[:20], *_texts(10)], [[3]] * 30, [[4]] * 30)
    towers = []
    for items in (whole, other):  # ten hidden products, whose texts lie in the same file
        states, offsets = items.text_means(), np.arange(31)
        seen = ItemInputs(
            std_key=Ragged.from_lists([[1]] * 20),
            std_id=Ragged.from_lists(lists),
            re_key=Ragged.from_lists([[1]] * 20),
            re_id=Ragged.from_lists([[4]] * 20),
            groups=np.arange(20),
            text_of_item=np.arange(20),
            state_offsets=offsets,
            states=states.astype(np.float16),
        )
        towers.append(_started(shape, seen).state_dict())
    for name, weight in towers[0].items():
        assert torch.equal(weight, towers[1][name]), name


def test_a_tower_without_titles_stays_as_it_was_drawn(shape: Shape) -> None:
    shape = replace(shape, inputs=("std", "re"))
    torch.manual_seed(0)
    drawn = ItemTower(shape).state_dict()
    for name, weight in _started(shape, _items(_texts(50), [[2]] * 50, [[3]] * 50)).state_dict().items():
        assert torch.equal(weight, drawn[name]), name


def _partners(count: int, kinds: np.ndarray, rng: np.random.Generator) -> Pairs:
    """`count` pairs of products of one of the `kinds`, int64[N]."""
    first = rng.integers(0, len(kinds), count)
    second = np.array([rng.choice(np.flatnonzero(kinds == kinds[row])) for row in first])
    apart = first != second
    low, high = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
    return Pairs(low, high, np.full(len(low), 1 / len(low)))


def test_a_start_by_choices_finds_what_partners_share_even_where_texts_differ_little_in_it(shape: Shape) -> None:
    """And for products that are in no pair."""
    rng = np.random.default_rng(3)
    texts, kinds = _texts(600), rng.integers(0, 2, 600)
    for text, kind in zip(texts, kinds, strict=True):
        text[:, -1] = 0.2 * (2 * kind - 1)  # the direction of least variance
    items = _items(texts, [[]] * 600, [[]] * 600)
    shape = replace(shape, width=8)
    pairs = _partners(60_000, kinds[:300], rng)

    def same_kind(tower: ItemTower) -> float:
        vectors = _vectors(tower, items)[300:]
        nearest = np.argsort(-(vectors @ vectors.T), axis=1)[:, 1:6]
        return float((kinds[300:][nearest] == kinds[300:, None]).mean())

    assert same_kind(_started(shape, items)) < 0.6
    assert same_kind(_started(shape, items, pairs)) > 0.8


def test_what_is_popular_is_no_direction_that_partners_share(shape: Shape) -> None:
    """Pairs at random among products of one kind say that these are chosen, and not what goes together."""
    rng = np.random.default_rng(5)
    texts, popular = _texts(600), np.arange(600) < 60
    for text, chosen in zip(texts, popular, strict=True):
        text[:, -1] = 0.2 * (2 * chosen - 1)
    items = _items(texts, [[]] * 600, [[]] * 600)
    pairs = _partners(60_000, np.where(popular, 0, np.arange(600)), rng)
    inside = popular[pairs.first]
    pairs = Pairs(pairs.first[inside], pairs.second[inside], np.full(inside.sum(), 1 / inside.sum()))
    shape = replace(shape, width=8)
    made = _vectors(_started(shape, items, pairs), items)
    alike = made @ made.T
    assert alike[popular][:, popular].mean() - alike[popular][:, ~popular].mean() < 0.1


def test_without_pairs_a_start_by_choices_is_that_by_texts(shape: Shape) -> None:
    items = _items([*_texts(50), np.zeros((0, TEXT_WIDTH))], [[3]] * 51, [[4]] * 51)
    shape = replace(shape, width=8)
    none = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    blank = Pairs(np.array([0]), np.array([50]), np.ones(1))  # a product that says nothing has no direction
    expected = _vectors(_started(shape, items), items)
    for pairs in (none, blank):
        found = _vectors(_started(shape, items, pairs), items)
        assert _alike(found, expected) > 0.99


@pytest.mark.parametrize("width", [8, 12, 32])
@pytest.mark.parametrize("count", [1, 40])
def test_few_pairs_of_few_products_give_finite_vectors(shape: Shape, count: int, width: int) -> None:
    items = _items(_texts(9), [[1]] * 9, [[]] * 9)
    pairs = _partners(count, np.zeros(9, np.int64), np.random.default_rng(width))
    assert np.isfinite(_vectors(_started(replace(shape, width=width), items, pairs), items)).all()
