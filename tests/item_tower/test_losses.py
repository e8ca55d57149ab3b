"""NT-Xent: its oracle, its groups, and that two workers take the step of one."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from pytorch_metric_learning.reducers import MeanReducer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from rec.models import text_layers
from rec.models.item_tower import ItemTower, Shape
from rec.models.losses import nt_xent
from tests.item_tower import encoders
from tests.item_tower.products import Product, batch

TEMPERATURE = 0.07


def two_views(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    first = nn.functional.normalize(torch.randn(count, 16), dim=1)
    return first, nn.functional.normalize(first + 0.5 * torch.randn(count, 16), dim=1)


@pytest.mark.parametrize("count", [2, 17, 64])
def test_without_groups_it_is_nt_xent(count: int) -> None:
    first, second = two_views(count)
    labels = torch.arange(count)
    oracle = NTXentLoss(temperature=TEMPERATURE)(torch.cat([first, second]), torch.cat([labels, labels]))
    assert nt_xent(first, second, labels, TEMPERATURE).item() == pytest.approx(oracle.item(), rel=1e-5)


@pytest.mark.parametrize("count", [2, 17, 200])
def test_with_groups_it_is_sup_con_over_the_pairs_that_are_left(count: int) -> None:
    first, second = two_views(count)
    groups = torch.randint(0, count, (count,))
    owners, rows = torch.cat([groups, groups]), torch.arange(2 * count)
    views = torch.cat([first, second])
    pairs = (rows, (rows + count) % (2 * count), *torch.where(owners[:, None] != owners[None, :]))
    gradients = []
    for value in (
        lambda views: SupConLoss(temperature=TEMPERATURE, reducer=MeanReducer())(views, indices_tuple=pairs),
        lambda views: nt_xent(*views.chunk(2), groups, TEMPERATURE),
    ):
        leaf = views.clone().requires_grad_()
        made = value(nn.functional.normalize(leaf, dim=1))
        made.backward()
        gradients.append((made.item(), leaf.grad))
    (expected, oracle), (found, gradient) = gradients
    assert found == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, oracle, atol=1e-6, rtol=1e-4)


def test_at_random_it_is_the_logarithm_of_the_choices() -> None:
    """A loss of 0 here is the silent trap of labels and ref_labels being one object."""
    torch.manual_seed(1)
    first, second = (nn.functional.normalize(torch.randn(64, 512), dim=1) for _ in range(2))
    assert nt_xent(first, second, torch.arange(64), 1.0).item() == pytest.approx(math.log(127), abs=0.02)


def test_products_of_one_group_are_no_negatives_of_each_other() -> None:
    """Equal to leaving those columns out of each row's softmax, and the loss does not see how close they are."""
    first, second = two_views(6)
    groups = torch.tensor([0, 0, 1, 2, 2, 2])
    views, owners = torch.cat([first, second]), torch.cat([groups, groups])
    rows = []
    for row in range(12):
        twin = (row + 6) % 12
        others = [column for column in range(12) if owners[column] != owners[row]]
        scores = views[row] @ views[[twin, *others]].T / TEMPERATURE
        rows.append(torch.logsumexp(scores, 0) - scores[0])
    expected = torch.stack(rows).mean().item()
    assert nt_xent(first, second, groups, TEMPERATURE).item() == pytest.approx(expected, rel=1e-5)


def test_group_mates_neither_attract_nor_repel() -> None:
    first, second = two_views(4)
    first.requires_grad_()
    only = nt_xent(first, second, torch.zeros(4, dtype=torch.long), TEMPERATURE)
    only.backward()
    assert only.item() == pytest.approx(0, abs=1e-6)
    assert first.grad is not None
    assert first.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_the_loss_falls_when_a_negative_moves_away() -> None:
    first, second = two_views(8)
    near = second.clone()
    near[3] = first[0]
    groups = torch.arange(8)
    assert nt_xent(first, near, groups, TEMPERATURE) > nt_xent(first, second, groups, TEMPERATURE)


CATALOGUE = [
    Product([(1 + i % 6, 1 + i), (1 + (i + 2) % 6, 20 + i)], [(1 + i % 6, 1 + i)], i % 5, seed=i) for i in range(8)
]
GROUPS = torch.tensor([0, 1, 2, 0, 3, 4, 5, 4])  # mates on different workers
SHAPE = Shape(
    num_keys=6,
    num_std_ids=40,
    num_re_tokens=30,
    text_width=12,
    text_encoder="minilm",
    width=16,
    heads=4,
    dropout=0.0,
    inputs=("std", "re", "title"),
)
MODES = {"frozen": 0, "top": 2, "full": None}
"""Mode of the text encoder → layers taken of it."""


def shape(mode: str) -> Shape:
    """SHAPE with what the mode holds of a text encoder."""
    if mode == "frozen":
        return SHAPE
    encoder = encoders.model("distilbert", dropout=0.0, attention_dropout=0.0)
    return replace(SHAPE, text=text_layers.take(encoder, MODES[mode], "distilbert").shape)


def step(rank: int, workers: int, folder: Path) -> None:
    """One worker's part of one step; worker 0 leaves loss and gradients behind."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{workers}", rank=rank, world_size=workers)
    made = {}
    for mode in MODES:
        made |= {f"{mode}.{name}": value for name, value in gradients(mode, rank, workers).items()}
    if rank == 0:
        save_file(made, folder / f"{workers}.safetensors")
    # The reducer must not hold the last reference to the group: its destructor joins gloo's threads under the
    # interpreter's lock, and they may be waiting for that lock. Therefore it ended with `gradients`.
    dist.destroy_process_group()


def gradients(mode: str, rank: int, workers: int) -> dict[str, torch.Tensor]:
    """The loss, and of every parameter the gradient."""
    torch.manual_seed(3)
    tower = ItemTower(shape(mode))
    model: nn.Module = DistributedDataParallel(tower) if workers > 1 else tower
    share = len(CATALOGUE) // workers
    mine = slice(rank * share, (rank + 1) * share)
    rng = np.random.default_rng(0)
    part = batch(CATALOGUE, ids=mode == "full")
    shapes = {"std": part.std_id.shape, "re": part.re_id.shape, "title": part.title_mask.shape}
    masks = {name: torch.from_numpy(rng.random((2, *shape)) < 0.3) for name, shape in shapes.items()}
    local = batch(CATALOGUE[mine], ids=mode == "full")
    widths = {"std": local.std_id.shape[1], "re": local.re_id.shape[1], "title": local.title_mask.shape[1]}
    first, second = model(local.views(**{n: m[:, mine, : widths[n]] for n, m in masks.items()})).chunk(2)
    loss = nt_xent(first, second, GROUPS[mine], TEMPERATURE)
    loss.backward()
    grads = {name: value.grad for name, value in tower.named_parameters() if value.grad is not None}
    return {**grads, "loss": loss.detach()}


@pytest.mark.slow
def test_two_workers_take_the_step_of_one(tmp_path: Path) -> None:
    """Real processes and real gloo: the loss and every gradient agree, with group mates on different workers."""
    step(0, 1, tmp_path)
    spawn(step, args=(2, tmp_path), nprocs=2)
    one, two = load_file(tmp_path / "1.safetensors"), load_file(tmp_path / "2.safetensors")
    assert one.keys() == two.keys()
    for mode in MODES:
        assert one[f"{mode}.loss"].item() > 0.1
        found = {name: value.abs().max().item() for name, value in one.items() if name.startswith(f"{mode}.")}
        assert max(value for name, value in found.items() if name != f"{mode}.loss") > 1e-2
    assert one["top.text.model.transformer.layer.0.attention.q_lin.weight"].abs().max().item() > 0
    for name, value in one.items():
        largest = value.abs().max().item()
        if name.endswith("k_lin.bias"):
            assert largest < 1e-9, "a softmax over keys does not see what is added to all: this is rounding alone"
        else:
            assert (two[name] - value).abs().max().item() <= 1e-5 * largest, name
