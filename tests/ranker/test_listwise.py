"""The loss and the ranks over candidate lists of unequal length."""

import numpy as np
import pytest
import torch

from rec.train.listwise import listwise_loss, target_ranks


def test_loss_is_the_mean_cross_entropy_of_the_lists() -> None:
    logits = torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0])
    loss = listwise_loss(logits, torch.tensor([3, 2]), torch.tensor([1, 0]))
    expected = (torch.logsumexp(logits[:3], 0) - 2.0 + torch.logsumexp(logits[3:], 0) + 1.0) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_loss_does_not_change_when_a_list_is_shifted() -> None:
    logits, counts, labels = (
        torch.randn(6, generator=torch.Generator().manual_seed(0)),
        torch.tensor([4, 2]),
        torch.zeros(2),
    )
    shifted = logits + torch.tensor([5.0] * 4 + [-2.0] * 2)
    losses = [listwise_loss(x, counts, labels.long()).item() for x in (logits, shifted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_ranks_by_hand_with_ties_in_retrieval_order() -> None:
    scores = np.array([3, 9, 5, 1, 1, 1, 7], np.float32)
    ranks = target_ranks(scores, np.array([3, 3, 1]), np.array([2, 1, 0]))
    assert ranks.tolist() == [1, 1, 0]
