"""One step of training: the losses by hand, frozen tables, and the same step on one worker and on two."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from rec.features.requests import Requests
from rec.features.transfer import transfer
from rec.train import checkpoint
from rec.train.checkpoint import Position
from rec.train.listwise import listwise_loss, pointwise_loss
from rec.train.ranking_step import Batch, Training, batch, update
from tests.ranker import models

both = pytest.mark.parametrize("name", models.NAMES)
COUNTS = np.array([3, 9, 1, 5, 7, 2, 12, 4])
USERS = np.arange(len(COUNTS))
UNIFORM = np.random.default_rng(5).random(len(COUNTS))


def requests() -> Requests:
    """Eight requests of unequal length; STD rows 8 to 11 and RE rows 5 to 8 never occur."""
    rng = np.random.default_rng(3)
    drawn = models.inputs(rng, int(COUNTS.sum()), std_below=8)
    re = np.where(rng.random((20, 6)) < 0.4, 0, rng.integers(0, 5, (20, 6))).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(COUNTS)])
    rows = rng.integers(0, 20, len(drawn.dense)).astype(np.int32)
    return Requests(rows, drawn.sparse.astype(np.int32), drawn.dense, offsets, rng.integers(0, COUNTS), re)


def training(name: str, pointwise: float = 0.3) -> Training:
    """A model without dropout in which every part matters."""
    model = models.new(name, dropout=0.0)
    model.load_state_dict(models.random(name).state_dict())
    return Training(model, pointwise, float(COUNTS.mean())).train()


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}


def test_the_pointwise_loss_is_the_mean_of_the_requests_means() -> None:
    logits, labels = torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0]), [1, 0]
    counts = torch.tensor([3, 2])
    each = [
        F.binary_cross_entropy_with_logits(logits[:3], torch.tensor([0.0, 1, 0])),
        F.binary_cross_entropy_with_logits(logits[3:], torch.tensor([1.0, 0])),
    ]
    found = pointwise_loss(logits, counts, torch.tensor(labels), torch.zeros(5), counts)
    assert found.item() == pytest.approx(sum(each).item() / 2, rel=1e-6)


@both
def test_losses_mix_by_weight_and_only_the_pointwise_one_has_the_bias(name: str) -> None:
    given, values = batch(requests(), USERS), {}
    for weight in (0.0, 0.25, 1.0):
        step = training(name, weight)
        values[weight] = step(given).item()
        step.bias.data += 3
        assert (step(given).item() != pytest.approx(values[weight])) == (weight > 0)
    assert values[0.25] == pytest.approx(0.75 * values[0.0] + 0.25 * values[1.0], rel=1e-5)
    model = training(name).model
    logits = model(given.sparse, given.varlen, given.dense)
    assert values[0.0] == pytest.approx(listwise_loss(logits, given.counts, given.labels).item(), rel=1e-6)


def test_a_batch_of_drawn_candidates_keeps_targets_and_rows_together() -> None:
    data, users = requests(), np.array([6, 1, 2])
    whole, drawn = batch(data, users), batch(data, users, 4, UNIFORM[users])
    assert drawn.counts.tolist() == [5, 5, 1]
    assert drawn.sizes.tolist() == whole.counts.tolist() == whole.sizes.tolist() == COUNTS[users].tolist()

    def targets(given: Batch) -> torch.Tensor:
        return given.dense[given.counts.cumsum(0) - given.counts + given.labels]

    assert torch.equal(targets(drawn), targets(whole))
    rows = {tuple(row) for row in whole.dense.tolist()}
    assert all(tuple(row) in rows for row in drawn.dense.tolist())
    everything = batch(data, users, 11, UNIFORM[users])
    assert torch.equal(everything.dense, whole.dense)
    assert not everything.log_q.any()


def _worker(rank: int, workers: int, folder: Path) -> None:
    """One worker's part of a step of each model; gradients of the first are written."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{workers}", rank=rank, world_size=workers)
    for name in models.NAMES:
        step = DistributedDataParallel(training(name), broadcast_buffers=False)
        users = USERS[rank::workers]
        step(batch(requests(), users, 3, UNIFORM[users])).backward()
        if rank == 0:
            save_file(gradients(step.module), folder / f"{name}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_step_of_two_workers_is_that_of_one(tmp_path: Path) -> None:
    """Requests of unequal length: the mean is over the requests of all workers."""
    spawn(_worker, (2, tmp_path), 2)
    for name in models.NAMES:
        step = training(name)
        step(batch(requests(), USERS, 3, UNIFORM)).backward()
        found, expected = load_file(tmp_path / f"{name}.safetensors"), gradients(step)
        assert found.keys() == expected.keys() >= {"bias"}
        for part, gradient in expected.items():
            assert (found[part] - gradient).abs().max() <= 1e-6 * max(gradient.abs().max().item(), 1), (name, part)


@both
@pytest.mark.parametrize("mode", ["copy", "project", "none"])
def test_transferred_rows_that_never_occur_stay_to_the_bit(name: str, mode: str) -> None:
    """From the item tower's rows to the exported table, under weight decay."""
    data, step = requests(), training(name)
    rng, starts = np.random.default_rng(9), {}
    for table, rows in (("std", 12), ("re", 9)):
        weight = step.model.table(table)
        if mode != "none":
            source = rng.normal(size=(rows, 4 if mode == "copy" else 10)).astype(np.float32)
            begun, _ = transfer(table, weight.detach().numpy(), source, np.ones(rows, bool), 0.05, mode)
            weight.data.copy_(torch.from_numpy(begun))
            if mode == "copy":
                np.testing.assert_array_equal(weight.detach().numpy()[1:], source[1:])
        starts[table] = weight.detach().clone()
    optimizer = step.optimizer(0.05, weight_decay=0.1)
    for _ in range(8):
        update(step, optimizer, batch(data, USERS))
    exported = step.model.export().table[:, :4]
    for table, rows, first in (("std", slice(8, 12), 0), ("re", slice(5, 9), 12)):
        assert torch.equal(exported[first + rows.start : first + rows.stop], starts[table][rows])
        assert not torch.equal(exported[first + 1 : first + 5], starts[table][1:5])


@both
def test_frozen_tables_stand_still_and_then_go_on_also_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    data = requests()

    def steps(step: Training, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            update(step, optimizer, batch(data, USERS), [step.model.table("std")] if number < 3 else [])

    through, start = training(name), training(name).model.table("std").detach().clone()
    optimizer = through.optimizer(0.05, 0.1)
    steps(through, optimizer, range(2))
    assert torch.equal(through.model.table("std"), start)
    assert not torch.equal(through.model.table("re"), training(name).model.table("re"))
    checkpoint.save(tmp_path, through, optimizer, Position(1, [{"loss": 1.0}]))
    steps(through, optimizer, range(2, 5))
    assert not torch.equal(through.model.table("std"), start)
    again = training(name)
    resumed = again.optimizer(0.05, 0.1)
    checkpoint.load(tmp_path, again, resumed)
    steps(again, resumed, range(2, 5))
    for (part, one), other in zip(through.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), part
