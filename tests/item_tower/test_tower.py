"""One product has one vector, whatever it is batched with and whatever it lacks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec import artifact
from rec.errors import ArtifactError
from rec.models import item_tower
from rec.models.item_tower import ItemTower, Shape
from tests.item_tower.products import Product, batch, products

BARE = Product([], [], 0)
FULL = Product([(1, 3), (2, 9)], [(1, 4), (5, 22)], 6)


def without(name: str) -> Product:
    """FULL without one input."""
    return Product([] if name == "std" else FULL.std, [] if name == "re" else FULL.re, 0 if name == "title" else 6)


def vectors(tower: ItemTower, catalogue: list[Product]) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = tower(batch(catalogue))
    return made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(product=products, mates=st.lists(products, max_size=6), place=st.integers(0, 6))
def test_a_product_has_one_vector_whatever_it_is_batched_with(
    tower: ItemTower, product: Product, mates: list[Product], place: int
) -> None:
    place = min(place, len(mates))
    alone = vectors(tower, [product])[0]
    among = vectors(tower, [*mates[:place], product, *mates[place:]])[place]
    assert torch.isfinite(alone).all()
    assert torch.linalg.vector_norm(alone).item() == pytest.approx(1, abs=1e-5)
    assert torch.dot(alone, among).item() >= 1 - 1e-5


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("lacking", ["std", "re", "title", "all"])
def test_a_product_without_an_input_has_a_unit_vector_and_gradients(shape: Shape, lacking: str, share: float) -> None:
    product = BARE if lacking == "all" else without(lacking)
    tower = ItemTower(replace(shape, std_share=share))
    made = tower(batch([product, FULL]))
    made.sum().backward()
    assert torch.linalg.vector_norm(made, dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tower.parameters())


@pytest.mark.parametrize(
    "product",
    [
        Product([], [], 1),
        Product([], [(1, 4)], 0),
        Product([(1, 3)], [], 0),
        Product([(key, key) for key in range(1, 7)], [(key, 1) for key in range(1, 7)], 0),  # unknown under every key
        Product([(1, 3)], [(1, 4)], 10_000),
        Product([(1, 3)], [(1 + n % 6, 1 + n % 29) for n in range(10_000)], 3),
    ],
    ids=["one title token", "one RE token", "one STD value", "unknowns", "long title", "many RE tokens"],
)
def test_extreme_products_have_one_unit_vector_and_disturb_nobody(tower: ItemTower, product: Product) -> None:
    alone, among = vectors(tower, [product])[0], vectors(tower, [FULL, product, BARE])
    assert torch.linalg.vector_norm(alone).item() == pytest.approx(1, abs=1e-5)
    assert torch.dot(alone, among[1]).item() >= 1 - 1e-5
    assert torch.dot(vectors(tower, [FULL])[0], among[0]).item() >= 1 - 1e-5


def test_hiding_a_value_equals_never_having_had_it(tower: ItemTower) -> None:
    """Trap: a mask that leaves exp(0) in the softmax, or counts hidden positions in the mean, fails here."""
    whole = batch([FULL])
    std = torch.tensor([[[False, True]]])
    re = torch.tensor([[[True, False]]])
    title = torch.zeros(1, 1, 6, dtype=torch.bool)
    title[0, 0, 4:] = True
    hidden = whole.views(std=std, re=re, title=title)
    removed = batch([Product(FULL.std[:1], FULL.re[1:], 6)]).views(
        std=torch.zeros(1, 1, 1, dtype=torch.bool), re=torch.zeros(1, 1, 1, dtype=torch.bool), title=title
    )
    removed = replace(removed, title=removed.title[:, :4], title_mask=removed.title_mask[:, :4])
    with torch.inference_mode():
        torch.testing.assert_close(tower(hidden), tower(removed), atol=1e-6, rtol=0)
        assert not torch.allclose(tower(hidden), tower(whole), atol=1e-3)


def test_two_views_in_one_batch_are_the_views_one_by_one(tower: ItemTower) -> None:
    catalogue = [FULL, Product([(3, 7)], [], 3, seed=4)]
    whole = batch(catalogue)
    masks = {
        "std": torch.rand(2, *whole.std_id.shape) < 0.5,
        "re": torch.rand(2, *whole.re_id.shape) < 0.5,
        "title": torch.rand(2, *whole.title_mask.shape) < 0.5,
    }
    with torch.inference_mode():
        both = tower(whole.views(**masks))
        single = [tower(whole.views(**{name: mask[v : v + 1] for name, mask in masks.items()})) for v in (0, 1)]
    torch.testing.assert_close(both, torch.cat(single), atol=1e-6, rtol=0)


@pytest.mark.parametrize("left_out", ["std", "re", "title"])
def test_an_input_left_out_has_no_effect_and_no_gradient(shape: Shape, left_out: str) -> None:
    torch.manual_seed(0)
    tower = ItemTower(replace(shape, inputs=tuple(name for name in shape.inputs if name != left_out))).eval()
    torch.testing.assert_close(vectors(tower, [FULL]), vectors(tower, [without(left_out)]), atol=1e-6, rtol=0)
    tower(batch([FULL])).sum().backward()
    trained = [p for p in tower.parameters() if p.requires_grad]
    assert len(trained) < len(list(tower.parameters()))
    assert all(p.grad is not None for p in trained)


def test_std_and_re_share_the_key_embedding(tower: ItemTower) -> None:
    """The same RE token under another key is another thing, and so is an STD id; one table tells both."""
    before = vectors(tower, [Product([(1, 3)], [], 0), Product([], [(1, 4)], 0)])
    with torch.no_grad():
        tower.key_table.weight[1] += torch.randn(tower.shape.width)
    after = vectors(tower, [Product([(1, 3)], [], 0), Product([], [(1, 4)], 0)])
    assert ((before - after).abs().amax(dim=1) > 1e-3).all()


def test_a_saved_tower_gives_the_same_vectors(tower: ItemTower, tmp_path: Path) -> None:
    with artifact.write(
        tmp_path / "tower", kind=item_tower.KIND, version=item_tower.VERSION, inputs={}, config={}
    ) as draft:
        tower.save(draft.path)
    found = item_tower.load(tmp_path / "tower")
    assert found.shape == tower.shape
    assert not found.training
    assert torch.equal(vectors(found, [FULL, BARE]), vectors(tower, [FULL, BARE]))
    assert found.std_table.weight.shape == (40, 16)
    assert found.re_table.weight.shape == (30, 16)


def test_a_missing_tower_names_the_job(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"jobs/pretrain\.py"):
        item_tower.load(tmp_path / "none")
