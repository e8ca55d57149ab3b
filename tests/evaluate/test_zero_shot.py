"""The zero-shot benchmark on few real articles: a mapped row is nearer than the mean, and the same seed repeats."""

from pathlib import Path

import pytest

from rec.config import load
from rec.evaluate import zero_shot
from rec.models import text_encoder
from rec.vocab.std import StdVocabulary


def test_mapped_rows_of_few_articles_beat_the_mean_and_repeat(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    articles = zero_shot.read(repository.parent / "shared" / "data", StdVocabulary.load(), 1_000, seed=17)
    if articles is None:
        pytest.skip(f"../shared/data/{zero_shot.ARTICLES} is not here: zero-shot tokens are not tested")
    assert len(articles) == 1_000
    monkeypatch.setattr(zero_shot, "EPOCHS", 4)
    monkeypatch.setattr(zero_shot, "BATCH", 128)
    config = load("hm", ["evaluate.bootstrap=200"])
    made = [zero_shot.figures(articles, text_encoder.load(config.text), config) for _ in range(2)]
    assert made[0] == made[1]
    for other in ("mean", "random"):
        gain = made[0]["zeroshot.mapped"]["value"] - made[0][f"zeroshot.{other}"]["value"]
        assert gain == pytest.approx(made[0][f"zeroshot.mapped.minus.{other}"]["value"], abs=2e-4)
        nearer = made[0][f"zeroshot.distance.{other}"]["value"] - made[0]["zeroshot.distance.mapped"]["value"]
        assert nearer == pytest.approx(made[0][f"zeroshot.nearer.than.{other}"]["value"], abs=2e-4)
        assert made[0][f"zeroshot.mapped.minus.{other}"]["ci95"][0] > 0


def test_a_folder_without_the_files_has_no_articles(tmp_path: Path) -> None:
    assert zero_shot.read(tmp_path, StdVocabulary.load(), 10, seed=17) is None
