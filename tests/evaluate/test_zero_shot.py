"""Rows mapped for tokens that a tower never saw, against the rows that training then gives them."""

from pathlib import Path

import pytest

from rec.config import load
from rec.evaluate import coverage, zero_shot
from rec.models import text_encoder


@pytest.mark.slow
def test_a_mapped_row_is_nearer_to_the_trained_one_than_a_random_row(repository: Path) -> None:
    garments = coverage.read(repository.parent / "shared" / "data")
    if garments is None:
        pytest.skip(f"../shared/data/{coverage.FILE} is not here: zero-shot tokens are not tested")
    config = load("demo")
    encoder = text_encoder.load(config.text)
    found = zero_shot.figures(garments.slice(0, 14_000), encoder, config.item_tower, config.seed, 500)
    assert set(found) == {
        *(f"zeroshot.{name}" for name in ("mapped", "mean", "random")),
        *(f"zeroshot.mapped.minus.{name}" for name in ("mean", "random")),
    }
    low, high = found["zeroshot.mapped.minus.random"]["ci95"]
    assert 0 < low < found["zeroshot.mapped.minus.random"]["value"] < high
    gain = found["zeroshot.mapped"]["value"] - found["zeroshot.random"]["value"]
    assert gain == pytest.approx(found["zeroshot.mapped.minus.random"]["value"], abs=2e-4)
