"""The zero-shot benchmark on few real garments: its figures are the paired ones, and the same seed gives the same."""

from pathlib import Path

import pyarrow.compute as pc
import pytest

from rec.config import load
from rec.evaluate import coverage, zero_shot
from rec.models import text_encoder


def test_the_figures_of_few_garments_are_paired_and_repeat(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    garments = coverage.read(repository.parent / "shared" / "data")
    if garments is None:
        pytest.skip(f"../shared/data/{coverage.FILE} is not here: zero-shot tokens are not tested")
    monkeypatch.setattr(zero_shot, "EPOCHS", 1)
    config = load("demo")
    few = garments.filter(pc.is_valid(garments.column("re_json"))).slice(0, 256)
    made = [
        zero_shot.figures(few, text_encoder.load(config.text), config.item_tower, config.seed, 100) for _ in range(2)
    ]
    assert made[0] == made[1]
    for other in ("mean", "random"):
        gain = made[0]["zeroshot.mapped"]["value"] - made[0][f"zeroshot.{other}"]["value"]
        assert gain == pytest.approx(made[0][f"zeroshot.mapped.minus.{other}"]["value"], abs=2e-4)
