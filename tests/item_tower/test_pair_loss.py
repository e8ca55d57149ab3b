"""The loss of pairs: its slow twin, its masks, LogQ, and that two workers take the step of one."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from rec.models.item_tower import ItemTower
from rec.models.pair_loss import Partners, pair_loss
from tests.item_tower.products import batch
from tests.item_tower.test_losses import CATALOGUE, SHAPE

TEMPERATURE = 0.1
GROUPS = torch.tensor([0, 1, 2, 0, 3, 4, 5, 4])
FIRST, SECOND = torch.tensor([0, 2, 4, 3, 1]), torch.tensor([1, 5, 7, 6, 4])
SHARE = torch.tensor([0.2, 0.15, 0.05, 0.1, 0.2, 0.05, 0.1, 0.15], dtype=torch.float64)
PARTNERS = Partners(GROUPS, SHARE, FIRST, SECOND)
ROWS = torch.tensor([[0, 2, 4, 3], [1, 5, 7, 6]])


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, 16), dim=1)


def slow(views: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """The loss by its definition, one anchor and one candidate at a time."""
    known = {(int(GROUPS[a]), int(GROUPS[b])) for a, b in zip(FIRST.tolist(), SECOND.tolist(), strict=True)}
    known |= {(b, a) for a, b in known}
    count = len(rows)
    losses = []
    for anchor in range(count):
        twin = (anchor + count // 2) % count
        scores = [views[anchor] @ views[twin] / TEMPERATURE]
        for other in range(count):
            pair = int(GROUPS[rows[anchor]]), int(GROUPS[rows[other]])
            if other == twin or pair[0] == pair[1] or pair in known:
                continue
            expected = (count - 2) * SHARE[rows[other]].float()
            scores.append(views[anchor] @ views[other] / TEMPERATURE - torch.log(expected))
        losses.append(torch.logsumexp(torch.stack(scores), 0) - scores[0])
    return torch.stack(losses).mean()


def test_it_is_what_its_definition_says() -> None:
    views = vectors(8)
    found = pair_loss(views[:4], views[4:], ROWS, PARTNERS, TEMPERATURE)
    assert found.item() == pytest.approx(slow(views, ROWS.reshape(-1).tolist()).item(), rel=1e-5)


def test_group_mates_and_known_partners_are_no_negatives() -> None:
    strangers = PARTNERS.strangers(torch.arange(8))
    assert not strangers.diagonal().any()
    assert torch.equal(strangers, strangers.T)
    together = {(0, 3), (0, 1), (3, 1), (4, 5), (4, 7), (5, 7), (2, 5), (2, 7), (3, 6), (0, 6), (1, 4)}
    for one in range(8):
        for other in range(one + 1, 8):
            assert strangers[one, other].item() is ((one, other) not in together and (other, one) not in together)


def test_a_popular_negative_counts_less_than_a_rare_one() -> None:
    """The same vectors: with LogQ a frequent candidate stands for itself alone, a rare one for many like it."""
    views = torch.zeros(4, 4)
    views[:, 0] = 1.0
    losses = []
    for share in (0.01, 0.4):
        partners = Partners(
            torch.arange(4), torch.tensor([0.1, share, 0.1, 0.4]), torch.tensor([0, 1]), torch.tensor([2, 3])
        )
        losses.append(pair_loss(views[:2], views[2:], torch.tensor([[0, 1], [2, 3]]), partners, TEMPERATURE).item())
    assert losses[0] > losses[1]


def test_without_the_correction_popularity_does_not_count() -> None:
    plain = Partners(GROUPS, SHARE, FIRST, SECOND, log_q=0.0)
    even = Partners(GROUPS, torch.full((8,), 1 / 8, dtype=torch.float64), FIRST, SECOND)
    views = vectors(8)
    found = [pair_loss(views[:4], views[4:], ROWS, partners, TEMPERATURE).item() for partners in (plain, even)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_pair_of_all_there_is_has_no_loss() -> None:
    """No negative is left: nothing to learn, and nothing that is not a number."""
    views = vectors(2).requires_grad_()
    partners = Partners(torch.arange(2), torch.tensor([0.5, 0.5]), torch.tensor([0]), torch.tensor([1]))
    found = pair_loss(views[:1], views[1:], torch.tensor([[0], [1]]), partners, TEMPERATURE)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert views.grad is not None
    assert torch.isfinite(views.grad).all()


def step(rank: int, workers: int, folder: Path) -> None:
    """One worker's part of one step; worker 0 leaves loss and gradients behind."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{workers}", rank=rank, world_size=workers)
    torch.manual_seed(3)
    tower = ItemTower(SHAPE)
    model: nn.Module = DistributedDataParallel(tower) if workers > 1 else tower
    share = ROWS.shape[1] // workers
    mine = ROWS[:, rank * share : (rank + 1) * share]
    first, second = model(batch([CATALOGUE[row] for row in mine.reshape(-1).tolist()])).chunk(2)
    loss = pair_loss(first, second, mine, PARTNERS, TEMPERATURE)
    loss.backward()
    if rank == 0:
        gradients = {name: value.grad for name, value in tower.named_parameters() if value.grad is not None}
        save_file({**gradients, "loss": loss.detach()}, folder / f"{workers}.safetensors")
    del model, first, second, loss  # see test_losses
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_take_the_step_of_one(tmp_path: Path) -> None:
    step(0, 1, tmp_path)
    spawn(step, args=(2, tmp_path), nprocs=2)
    one, two = load_file(tmp_path / "1.safetensors"), load_file(tmp_path / "2.safetensors")
    assert one.keys() == two.keys()
    assert one["loss"].item() > 0.1
    assert max(value.abs().max().item() for name, value in one.items() if name != "loss") > 1e-2
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-5, err_msg=name)
