"""The benchmark `scale`: its shop, its jobs on a small one, and its figures."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from rec.config import Config
from rec.data.sample.many import _events, many
from rec.enrich.text import canonical
from rec.evaluate import chain_speed, scale
from rec.evaluate.scale import Grown, Taken


def test_a_shop_of_any_size_has_distinct_texts_and_is_the_same_again() -> None:
    rows = list(islice(many(5), 2_000))
    assert len({canonical(row, 1_200).content_hash for row in rows}) == 2_000
    assert [row["product_id"] for row in rows] == sorted(row["product_id"] for row in rows)
    assert list(islice(many(5), 100)) == rows[:100]
    assert list(islice(many(6), 100)) != rows[:100]


def test_the_same_products_sell_in_every_run_and_some_more_than_others() -> None:
    events = _events(1_000, 5)
    assert events.equals(_events(1_000, 5))
    assert not events.equals(_events(1_000, 6))
    assert events.num_rows == 10_000
    counts = sorted(Counter(events["product_id"].to_pylist()).values(), reverse=True)
    assert sum(counts[:200]) > 0.6 * sum(counts)
    assert set(events["product_id"].to_pylist()) <= {row["product_id"] for row in islice(many(5), 1_000)}


def _grown(seconds: float, peak_gib: float = 1.0, total: float = 10.0) -> Grown:
    return Grown({"enrich": Taken(seconds, peak_gib)}, {"total": total}, 0.5)


def test_growth_is_the_time_of_a_further_product() -> None:
    sizes = {"large": 1_000, "small": 10, "middle": 100}
    figures = scale.figures({name: _grown(5 + rows / 50) for name, rows in sizes.items()}, sizes)
    assert figures["enrich.marginal"]["value"] == pytest.approx(1)
    assert figures["large.enrich.seconds"]["value"] == figures["large.seconds"]["value"] == 25
    assert figures["enrich.products_per_s"]["value"] == 40
    figures = scale.figures({name: _grown(5 + rows**2 / 50) for name, rows in sizes.items()}, sizes)
    assert figures["enrich.marginal"]["value"] == pytest.approx(10)
    figures = scale.figures({name: _grown(5) for name in sizes}, sizes)
    assert "enrich.marginal" not in figures, "of a time that does not grow there is no growth to tell"
    figures = scale.figures({name: _grown(5, rows / 1_000, rows**0.5) for name, rows in sizes.items()}, sizes)
    assert figures["enrich.peak_growth"]["value"] == pytest.approx(10)
    assert figures["p50.growth_per_decade"]["value"] == pytest.approx(10**0.5, rel=1e-3)


@pytest.mark.slow
def test_the_jobs_take_a_synthetic_shop_and_go_on_where_they_were_killed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stages; what the others do is seen in tests/pipeline, and the chain in the test below."""
    asked: list[Config] = []

    def answering(config: Config) -> dict[str, float]:
        asked.append(config)
        return {"total": 1.0}

    monkeypatch.setattr(chain_speed, "stages", answering)
    folder = tmp_path / "scale"
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / scale.TAKEN).write_text(json.dumps({"tensorize": {"seconds": 1.5, "peak_gib": 1.0}}))
    names = ["ingest", "enrich", "tensorize"]
    grown = scale.measure(repository / "jobs", folder, names, {"tiny": 300}, 3)["tiny"]
    assert list(grown.stages) == names
    assert grown.stages["tensorize"] == Taken(1.5, 1.0), "measured before, and not again"
    assert all(took.seconds > 0.1 for took in grown.stages.values())
    assert all(took.peak_gib > 0.05 for took in grown.stages.values())
    assert grown.chain_ms == {"total": 1.0}
    assert grown.store_gib > 0
    assert asked[0].ranker.max_users == 20_000
    assert not folder.exists()
