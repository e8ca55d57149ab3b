"""Figures of the benchmark `scale`: how stages and answers grow, and what a hundred times the products would take."""

import pytest

from rec import pipeline
from rec.evaluate import growth
from rec.evaluate.growth import Grown, Spent, Taken

MEASURED = {
    "10k": {"ingest": (0.8, 0.17), "encode": (17.3, 0.98), "train_ranker": (31.2, 2.91), "publish": (6.2, 0.45)},
    "100k": {"ingest": (2.8, 0.40), "encode": (245.5, 3.98), "train_ranker": (60.6, 3.21), "publish": (59.5, 0.72)},
    "1m": {
        "ingest": (55.6, 2.46),
        "encode": (2_170.7, 12.02),
        "train_ranker": (46.6, 4.84),
        "publish": (1_173.4, 2.71),
    },
}
"""Seconds and GiB of four stages, as once measured."""
SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}


def _grown(seconds: float | None, peak_gib: float = 1.0, total: float = 10.0) -> Grown:
    taken = None if seconds is None else Taken(seconds, peak_gib)
    return Grown({"enrich": taken}, {"total": Spent(total, 2 * total)}, 0.5, 0.1)


def test_growth_is_the_time_of_a_further_product() -> None:
    sizes = {"large": 100_000, "small": 1_000, "middle": 10_000}
    figures = growth.figures({name: _grown(5 + rows / 50) for name, rows in sizes.items()}, sizes)
    assert figures["enrich.marginal"]["value"] == pytest.approx(1)
    assert figures["large.enrich.seconds"]["value"] == figures["large.seconds"]["value"] == 2_005
    assert figures["enrich.products_per_s"]["value"] == 49.9
    figures = growth.figures({name: _grown(5 + rows**2 / 50) for name, rows in sizes.items()}, sizes)
    assert figures["enrich.marginal"]["value"] == pytest.approx(10)
    figures = growth.figures({name: _grown(5 + rows / 1e6) for name, rows in sizes.items()}, sizes)
    assert "enrich.marginal" not in figures, "of a time that does not grow there is no growth to tell"
    figures = growth.figures({name: _grown(5, rows / 1_000, rows**0.5) for name, rows in sizes.items()}, sizes)
    assert figures["enrich.peak_growth"]["value"] == pytest.approx(10)
    assert figures["large.chain.total.p50.growth_per_decade"]["value"] == pytest.approx(10**0.5, rel=1e-3)


def test_what_is_not_known_is_left_out() -> None:
    sizes = {"large": 100_000, "small": 1_000, "middle": 10_000}
    figures = growth.figures(
        {name: _grown(None if name == "middle" else rows / 50) for name, rows in sizes.items()}, sizes
    )
    assert {"large.enrich.seconds", "large.seconds", "large.chain.total.p50.growth_per_decade"} < figures.keys()
    assert {"middle.enrich.seconds", "middle.seconds", "enrich.marginal"}.isdisjoint(figures)


def _of(size: str) -> Grown:
    total, retrieval = {"10k": (8.61, 5.46), "100k": (10.29, 6.79), "1m": (13.42, 9.43)}[size]
    chain = {"retrieval": Spent(retrieval, 9.0), "rules": Spent(0.0, 0.1), "total": Spent(total, 2 * total)}
    taken = {stage: Taken(*values) for stage, values in MEASURED[size].items()}
    return Grown(taken, chain, SIZES[size] * 15e-6, SIZES[size] * 8e-6)


def test_a_hundred_times_the_largest_shares_out_what_can_be_and_leaves_the_rest_to_one_machine() -> None:
    figures = growth.figures({size: _of(size) for size in SIZES}, SIZES)
    far = {name: values["value"] for name, values in figures.items() if name.startswith("100m.")}
    publish = (1_173.4 + (1_173.4 - 59.5) / 900_000 * 99_000_000) / 3_600
    ingest = (55.6 + (55.6 - 2.8) / 900_000 * 99_000_000) / 3_600
    encode = (2_170.7 + (2_170.7 - 245.5) / 900_000 * (100_000_000 / growth.NODES - 1_000_000)) / 3_600
    assert far["100m.publish.hours"] == pytest.approx(publish, abs=0.01)
    assert far["100m.encode.hours"] == pytest.approx(encode, abs=0.01)
    assert far["100m.train_ranker.hours"] == pytest.approx(46.6 / 3_600, abs=0.01), (
        "it does not grow, and does not shrink"
    )
    assert far["100m.serial.hours"] == pytest.approx(publish + ingest, abs=0.1)
    assert far["100m.hours"] == pytest.approx(publish + ingest + encode + 46.6 / 3_600, abs=0.1)
    assert far["100m.serial.peak_gib"] == pytest.approx(2.46 + 2.06 / 900_000 * 99_000_000, rel=0.01)
    assert (far["100m.states.gib"], far["100m.store.gib"]) == (800, 1_500)
    assert figures["encode.marginal.ms"]["value"] == pytest.approx(2.139, abs=0.001)
    assert figures["publish.marginal.kib"]["value"] == pytest.approx(1.99 / 900_000 * 2**20, abs=0.01)


def test_the_budget_of_an_answer_is_told_by_stage_and_how_it_grows_for_ten_times_the_products() -> None:
    figures = growth.figures({size: _of(size) for size in SIZES}, SIZES)
    assert figures["1m.chain.total.p50.ms"]["value"] == 13.42
    assert figures["10k.chain.retrieval.p99.ms"]["value"] == 9
    told = {name: values["value"] for name, values in figures.items() if name.endswith("growth_per_decade")}
    assert told == {
        "100k.chain.total.p50.growth_per_decade": 1.195,
        "100k.chain.total.p99.growth_per_decade": 1.195,
        "1m.chain.total.p50.growth_per_decade": 1.304,
        "1m.chain.total.p99.growth_per_decade": 1.304,
        "100k.chain.retrieval.p50.growth_per_decade": 1.244,
        "100k.chain.retrieval.p99.growth_per_decade": 1,
        "1m.chain.retrieval.p50.growth_per_decade": 1.389,
        "1m.chain.retrieval.p99.growth_per_decade": 1,
        "100k.chain.rules.p99.growth_per_decade": 1,
        "1m.chain.rules.p99.growth_per_decade": 1,
    }, "there is no size before 10k, and what takes no time does not grow"
    goals = {name for name, values in figures.items() if name in told and values["goal"] is not None}
    assert goals == {"100k.chain.total.p50.growth_per_decade", "1m.chain.total.p50.growth_per_decade"}
    quick = {"10k": 500, "100k": 2_000, "1m": 8_000}
    figures = growth.figures({size: _of(size) for size in quick}, quick)
    assert figures["1m.chain.total.p50.growth_per_decade"]["value"] > 1.5, "four times the products are .6 of a decade"
    assert "800k.hours" in figures


def test_what_one_machine_does_are_stages_of_the_pipeline() -> None:
    assert {stage.name for stage in pipeline.STAGES} > growth.SERIAL
