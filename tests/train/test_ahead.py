"""Batches one ahead: the same ones in the same order, and their errors where they belong."""

import threading
from collections.abc import Iterator

import pytest
import torch

from rec.train import ahead

DEVICES = [torch.device("cpu"), torch.device("meta")]
"""One without a thread, and one as any other device, with it."""


@pytest.mark.parametrize("device", DEVICES)
def test_all_come_in_order(device: torch.device) -> None:
    assert list(ahead.made(lambda n: n * n, range(5), device)) == [0, 1, 4, 9, 16]
    assert list(ahead.made(lambda n: n, [], device)) == []


def test_the_next_is_made_while_the_last_is_used() -> None:
    second = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            second.set()
        return number

    batches = ahead.made(make, range(3), torch.device("meta"))
    assert next(batches) == 0
    assert second.wait(10)
    assert list(batches) == [1, 2]


@pytest.mark.parametrize("device", DEVICES)
def test_an_error_comes_in_its_place(device: torch.device) -> None:
    batches: Iterator[float] = ahead.made(lambda n: 1 / n, [2, 1, 0], device)
    assert [next(batches), next(batches)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(batches)
