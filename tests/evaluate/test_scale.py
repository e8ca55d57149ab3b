"""The benchmark `scale`: its shop, its jobs on a small one, and its figures."""

from itertools import islice
from pathlib import Path

import pytest

from rec.data.sample.many import many
from rec.enrich.text import canonical
from rec.errors import RecError
from rec.evaluate import scale
from rec.evaluate.scale import Taken


def test_a_shop_of_any_size_has_distinct_texts_and_is_the_same_again() -> None:
    rows = list(islice(many(5), 2_000))
    assert len({canonical(row, 1_200).content_hash for row in rows}) == 2_000
    assert [row["product_id"] for row in rows] == sorted(row["product_id"] for row in rows)
    assert list(islice(many(5), 100)) == rows[:100]
    assert list(islice(many(6), 100)) != rows[:100]


def test_growth_is_the_time_of_a_further_product() -> None:
    sizes = {"large": 1_000, "small": 10, "middle": 100}
    linear = {name: {"enrich": Taken(5 + rows / 50, 1.0)} for name, rows in sizes.items()}
    figures = scale.figures(linear, sizes)
    assert figures["enrich.marginal"]["value"] == pytest.approx(1)
    assert figures["large.enrich.seconds"]["value"] == 25
    assert figures["large.enrich.products_per_s"]["value"] == 40
    quadratic = {name: {"enrich": Taken(5 + rows**2 / 50, 1.0)} for name, rows in sizes.items()}
    assert scale.figures(quadratic, sizes)["enrich.marginal"]["value"] == pytest.approx(10)
    constant = {name: {"enrich": Taken(5, 1.0)} for name in sizes}
    with pytest.raises(RecError, match="enrich took no longer for 100 products than for 10"):
        scale.figures(constant, sizes)
    fat = {name: {"enrich": Taken(5 + rows / 50, rows / 1_000)} for name, rows in sizes.items()}
    assert scale.figures(fat, sizes)["enrich.peak_growth"]["value"] == pytest.approx(10)


@pytest.mark.slow
def test_the_jobs_take_a_synthetic_shop_and_ask_no_model(repository: Path) -> None:
    taken = scale.measure(repository / "jobs", {"tiny": 300}, 3)["tiny"]
    assert list(taken) == ["ingest", "enrich", "tensorize"]
    assert all(took.seconds > 0.1 and took.peak_gib > 0.05 for took in taken.values())
