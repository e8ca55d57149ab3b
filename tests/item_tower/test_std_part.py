"""The part of a vector that is STD's alone: what it says, how it is trained and what of it is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec.config import ItemTower as Options
from rec.config import load
from rec.errors import ConfigError
from rec.models import losses
from rec.models.item_tower import ItemTower, Shape
from rec.models.item_vectors import item_vectors
from rec.models.std_part import join, parts
from rec.train import components, contrast
from tests.item_tower.products import Product, batch, inputs

CATALOGUE = [Product([(1, 1 + n % 3), (2, 9 + n % 5)], [(1, 4 + n % 20)], 1 + n % 4, seed=n) for n in range(40)]


@pytest.fixture
def whole(shape: Shape) -> ItemTower:
    """A tower in training, which has both parts whole."""
    torch.manual_seed(0)
    return ItemTower(replace(shape, std_share=0.3)).eval()


@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_in_a_joined_vector_each_part_has_its_share(share: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    mixed, std = (torch.nn.functional.normalize(torch.randn(5, n, generator=draw), dim=-1) for n in (12, 4))
    joined = join(mixed, std, share)
    expected = (1 - share) * mixed @ mixed.T + share * std @ std.T
    torch.testing.assert_close(joined @ joined.T, expected, atol=1e-5, rtol=0)
    for found, part in zip(parts(joined, 4), (mixed, std), strict=True):
        torch.testing.assert_close(found, part, atol=1e-4, rtol=0)


def test_the_part_of_std_knows_nothing_else(tower: ItemTower) -> None:
    if not tower.shape.std_width:
        pytest.skip("has no such part")
    std = [(1, 3), (2, 9)]
    catalogue = [Product(std, [(1, 4)], 6), Product(std[::-1], [], 0), Product(std[:1], [(1, 4)], 6)]
    with torch.inference_mode():
        mixed, told = parts(tower(batch(catalogue)), tower.shape.std_width)
    torch.testing.assert_close(told[0], told[1], atol=1e-6, rtol=0)
    assert (told[0] @ told[2]).item() < 0.999
    assert (mixed[0] @ mixed[1]).item() < 0.999


def test_each_part_is_trained_by_its_own_loss(whole: ItemTower) -> None:
    """That titles find the twin is no excuse for what STD says."""
    options = Options(width=16, heads=4, std_width=4)
    few = batch(CATALOGUE[:6])
    masks = {"std": torch.rand(2, *few.std_id.shape) < 0.3, "re": torch.rand(2, *few.re_id.shape) < 0.3}
    seen = few.views(**masks, title=torch.zeros(2, *few.title_mask.shape, dtype=torch.bool))
    groups = torch.arange(6)
    loss, hits = contrast.step(whole, contrast.Drawn(groups.numpy(), groups, [seen]), options)
    gradient = whole.std_table.weight.grad
    first, second = whole(seen).chunk(2)
    views = zip(parts(first, 16), parts(second, 16), strict=True)
    own = torch.stack([losses.nt_xent(*both, groups, options.temperature) for both in views])
    torch.testing.assert_close(loss, own.sum().detach())
    (expected,) = torch.autograd.grad(own.sum(), whole.std_table.weight)
    torch.testing.assert_close(gradient, expected)
    assert hits.item() == pytest.approx(((first @ second.T).argmax(1) == groups).float().mean().item())


def test_what_is_kept_is_what_keeps_inner_products_best(whole: ItemTower) -> None:
    items = inputs(CATALOGUE)
    made = components.kept(whole, items, 4)
    assert made.shape == replace(whole.shape, std_width=4)
    assert not made.training
    assert made.components is not None
    before = parts(torch.from_numpy(item_vectors(whole, items)), 16)
    after = parts(torch.from_numpy(item_vectors(made, items)), 4)
    for part, found, directions in zip(before, after, (made.components.mixed, made.components.std), strict=True):
        placed, (_, _, axes) = part @ directions, torch.linalg.svd(part)
        best = part @ axes[: directions.shape[1]].T  # of so many numbers, those with the nearest inner products
        torch.testing.assert_close(placed @ placed.T, best @ best.T, atol=1e-4, rtol=0)
        torch.testing.assert_close(found, torch.nn.functional.normalize(placed), atol=1e-4, rtol=0)
        assert (directions.gather(0, directions.abs().argmax(0, keepdim=True)) > 0).all()
    again = components.kept(whole, items, 4).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in made.state_dict().items())


def test_one_product_is_enough(whole: ItemTower) -> None:
    made = components.kept(whole, inputs(CATALOGUE[:1]), 4)
    lengths = np.linalg.norm(item_vectors(made, inputs(CATALOGUE)), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_a_part_of_std_needs_std_and_leaves_room() -> None:
    with pytest.raises(ConfigError, match=r'inputs=\[\'title\'\] lacks "std"; set item_tower\.std_width=0'):
        load("demo", ['item_tower.inputs=["title"]', "item_tower.std_width=32"])
    with pytest.raises(ConfigError, match=r"std_width=128 leaves no number of width=128"):
        load("demo", ["item_tower.std_width=128"])
