"""One contrastive step: a batch in chunks has the gradient of the whole, and runs of a category are spread evenly."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from rec.config import ItemTower as Options
from rec.models.item_inputs import ItemBatch
from rec.models.item_tower import ItemTower, Shape
from rec.models.losses import nt_xent
from rec.train import contrast
from tests.item_tower.products import Product, inputs

CATALOGUE = [
    Product([(1 + i % 6, 1 + i), (1 + (i + 2) % 6, 20 + i)], [(1 + i % 6, 1 + i)], i % 5, seed=i) for i in range(12)
]
GROUPS = torch.tensor([0, 1, 2, 0, 3, 4, 5, 4, 6, 7, 8, 9])


def shape(dropout: float, std_share: float = 0.0) -> Shape:
    return Shape(
        num_keys=6, num_std_ids=40, num_re_tokens=30, text_width=12, text_encoder="minilm", width=16, heads=4,
        dropout=dropout, inputs=("std", "re", "title"), std_share=std_share,
    )  # fmt: skip


def views(parts: list[np.ndarray]) -> list[ItemBatch]:
    """Two views of each part, as training draws them."""
    items, rng = inputs(CATALOGUE), np.random.default_rng(1)
    return [contrast.two_views(items.batch(part), 6, Options(), rng) for part in parts]


def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return nt_xent(first, second, GROUPS, 0.2)


def gradients(tower: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in tower.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("parts", [2, 5, 12])
def test_a_batch_in_chunks_has_the_gradient_of_the_whole(parts: int) -> None:
    """With dropout on: the second pass must draw what the first one drew."""
    torch.manual_seed(0)
    tower = ItemTower(shape(0.3, std_share=0.4)).train()
    chunks = views(np.array_split(np.arange(12), parts))
    torch.manual_seed(7)
    firsts, seconds = zip(*(tower(chunk).chunk(2) for chunk in chunks), strict=True)
    whole = loss(torch.cat(firsts), torch.cat(seconds))
    whole.backward()
    expected, after = gradients(tower), torch.rand(3)
    tower.zero_grad()
    torch.manual_seed(7)
    value = contrast.backward(tower, chunks, loss)
    assert torch.equal(torch.rand(3), after), "random numbers go on as if there had been one pass"
    assert value.item() == pytest.approx(whole.item(), rel=1e-6)
    found = gradients(tower)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-6 * max(gradient.abs().max().item(), 1), name


def step(rank: int, workers: int, folder: Path) -> None:
    """One worker's part of one step; the larger group of workers goes through its products in chunks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{workers}", rank=rank, world_size=workers)
    torch.manual_seed(3)
    tower = ItemTower(shape(0.0, std_share=0.4))
    model: nn.Module = DistributedDataParallel(tower) if workers > 1 else tower
    chunks = views([np.arange(start, start + 3) for start in range(0, 12, 3)])  # the same views, whoever sees them
    share = len(chunks) // workers
    mine = GROUPS.chunk(workers)[rank]
    value = contrast.backward(
        model, chunks[rank * share : (rank + 1) * share], lambda first, second: nt_xent(first, second, mine, 0.2)
    )
    if rank == 0:
        save_file({**gradients(tower), "loss": value}, folder / f"{workers}.safetensors")
    del model  # see tests/item_tower/test_losses.py
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_chunks_take_the_step_of_one(tmp_path: Path) -> None:
    step(0, 1, tmp_path)
    spawn(step, args=(2, tmp_path), nprocs=2)
    one, two = load_file(tmp_path / "1.safetensors"), load_file(tmp_path / "2.safetensors")
    assert one.keys() == two.keys()
    largest = max(value.abs().max().item() for name, value in one.items() if name != "loss")
    for name, value in one.items():
        assert (two[name] - value).abs().max().item() <= 1e-5 * largest, name


@pytest.mark.parametrize("std_width", [0, 4])
def test_a_step_of_the_trainer_is_one_of_its_chunks(std_width: int) -> None:
    items = inputs(CATALOGUE)
    torch.manual_seed(0)
    tower = ItemTower(shape(0.0, std_share=0.4 if std_width else 0.0)).train()
    told = []
    for chunk_size in (None, 12, 5, 1):
        tower.zero_grad()
        options = Options(chunk_size=chunk_size, feature_dropout=0.0, token_dropout=0.0, width=16, std_width=std_width)
        value, hits = contrast.step(
            tower, contrast.draw(items, np.arange(12), 6, options, np.random.default_rng(0)), options
        )
        told.append((value.item(), hits.item(), gradients(tower)))
    for value, hits, found in told[1:]:
        assert value == pytest.approx(told[0][0], rel=1e-5)
        assert hits == told[0][1] == 1.0, "nothing is hidden: the views are equal"
        for name, gradient in told[0][2].items():
            assert (found[name] - gradient).abs().max() <= 1e-5, name


@given(count=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_product_stands_once_in_an_order(count: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = contrast.order(rng.integers(0, 7, count), share, np.random.default_rng(seed))
    assert sorted(found.tolist()) == list(range(count))


def test_a_share_of_every_batch_is_of_few_categories() -> None:
    categories = np.random.default_rng(0).integers(1, 60, 6_000)
    mixed = contrast.order(categories, 0.0, np.random.default_rng(1))
    assert (mixed == np.random.default_rng(1).permutation(6_000)).all(), "without a share it is any order"
    kin = contrast.order(categories, 0.5, np.random.default_rng(1))

    def mates(order: np.ndarray) -> list[float]:
        """Share of pairs of a batch of 128 that are of one category, batch by batch."""
        batches = [categories[order[start : start + 128]] for start in range(0, 6_000 - 127, 128)]
        return [float((found[:, None] == found[None, :]).mean()) for found in batches]

    assert min(mates(kin)) > 1.5 * float(np.mean(mates(mixed))), "in every batch, not in some"


def test_runs_are_of_one_category_and_none_is_no_category() -> None:
    categories = np.random.default_rng(0).permutation(np.repeat([0, *range(1, 11)], [1600, *[160] * 10]))
    found = categories[contrast.order(categories, 0.7, np.random.default_rng(1))].reshape(100, 2, contrast.RUN)
    assert (found[:, 0] == found[:, 0, :1]).all(), "all that have a category stand in whole runs of it"
    assert found[:, 0].min() > 0
    assert (found[:, 1] == 0).all(), "and as many others after each"
    few = np.array([1, 1, 2, 3, 0, 0])
    assert sorted(contrast.order(few, 1.0, np.random.default_rng(0)).tolist()) == list(range(6))
