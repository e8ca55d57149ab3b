"""The contest keeps the best epoch, through a checkpoint as well, and knows when nothing better comes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rec.train import checkpoint
from rec.train.checkpoint import Position
from rec.train.contest import Contest


def _set(contest: Contest[nn.Linear], value: float) -> None:
    with torch.no_grad():
        contest.current.weight.fill_(value)


@pytest.mark.parametrize("top", [0.3, 0.7])  # float32 rounds one up and the other down
def test_the_best_epoch_wins_and_a_tie_goes_to_the_earlier_one(top: float) -> None:
    contest = Contest(nn.Linear(2, 1))
    for epoch, (weight, figure) in enumerate([(1.0, 0.1), (2.0, top), (3.0, top), (4.0, 0.2)], start=1):
        _set(contest, weight)
        contest.judge(figure, epoch)
    assert int(contest.best_epoch) == 2
    assert contest.current.weight.tolist() == [[4.0, 4.0]]
    assert contest.winner().weight.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(("patience", "stale"), [(0, False), (2, True), (3, True), (4, False)])
def test_it_is_stale_after_patience_epochs_without_a_better_one(patience: int, stale: bool) -> None:
    contest = Contest(nn.Linear(2, 1))
    for epoch, figure in enumerate([0.2, 0.1, 0.1, 0.0], start=1):
        contest.judge(figure, epoch)
    assert contest.stale(4, patience) is stale


def test_a_checkpoint_holds_both_and_only_the_module_in_training_learns(tmp_path: Path) -> None:
    contest = Contest(nn.Linear(2, 1))
    assert [name for name, value in contest.named_parameters() if value.requires_grad] == [
        "current.weight",
        "current.bias",
    ]
    _set(contest, 5.0)
    contest.judge(0.5, 7)
    _set(contest, 6.0)
    checkpoint.save(tmp_path, contest, torch.optim.AdamW(contest.current.parameters()), Position(9, [{}]))
    again = Contest(nn.Linear(2, 1))
    assert checkpoint.load(tmp_path, again) == Position(9, [{}])
    assert (int(again.best_epoch), float(again.best_figure)) == (7, 0.5)
    assert again.current.weight.tolist() == [[6.0, 6.0]]
    assert again.winner().weight.tolist() == [[5.0, 5.0]]
