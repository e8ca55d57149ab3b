"""Amazon's reviews: the official files, the Beauty cut, and the real cut where it lies."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec import config, dataset
from rec.config import Config
from rec.data import amazon, ingest
from rec.errors import InputError
from rec.schema import INTERACTIONS, PRODUCTS

META = [
    {
        "asin": "B1",
        "title": "Rosy 'n' Lip Balm",
        "description": 'Says "soft".\nAnd is.',
        "price": 4.5,
        "brand": "Dew",
        "imUrl": "http://images.example/b1.jpg",
        "categories": [["Beauty", "Makeup", "Lip Balms"], ["Beauty", "Care, Skin"], ["Gifts", "Lip Balms"], ["Beauty"]],
        "salesRank": {"Beauty": 7},
        "related": {"also_bought": ["B9"]},
    },
    {"asin": "B9", "title": "Never reviewed", "categories": [["Beauty"]]},
    {"asin": "B2", "title": " ", "price": 3, "categories": [["Beauty"]]},
]
REVIEWS = [
    {"reviewerID": "Zoe", "asin": "B2", "overall": 5.0, "unixReviewTime": 1_388_620_800, "reviewText": "Fine."},
    {"reviewerID": "Zoe", "asin": "B1", "overall": 3.0, "unixReviewTime": 1_388_534_400},
    {"reviewerID": "Ann", "asin": "B3", "overall": 1.0, "unixReviewTime": 1_388_534_400},
]


def official(folder: Path, category: str = "Beauty", extra: str = "") -> None:
    meta = "".join(f"{row!r}\n" for row in META) + extra
    (folder / f"meta_{category}.json.gz").write_bytes(gzip.compress(meta.encode()))
    reviews = "".join(json.dumps(row) + "\n" for row in REVIEWS)
    (folder / f"reviews_{category}_5.json.gz").write_bytes(gzip.compress(reviews.encode()))


def tree(folder: Path, *options: str) -> Config:
    return config.load("beauty", [f'source.folder="{folder}"', f'store="{folder}/store"', *options])


def events(made: Config) -> list[dict[str, Any]]:
    return dataset.read(made.at("events"), INTERACTIONS).to_pylist()


def test_official_files_give_the_reviewed_products_and_all_reviews(tmp_path: Path) -> None:
    official(tmp_path)
    made = tree(tmp_path)
    facts = ingest.run(made)
    assert facts["products"] == {"rows": 3, "rejected": 0}
    assert facts["events"] == {"rows": 3, "rejected": 0, "left_out": 0, "values_left_out": 0}
    balm, untitled, unlisted = dataset.read(made.at("products"), PRODUCTS).to_pylist()
    assert (balm["title"], balm["description"]) == ("Rosy 'n' Lip Balm", 'Says "soft".\nAnd is.')
    assert (balm["price"], balm["brand"], balm["image_urls"]) == (4.5, "Dew", ["http://images.example/b1.jpg"])
    assert dict(balm["attributes"]) == {"category": ["Lip Balms", "Care, Skin"]}
    assert (untitled["product_id"], untitled["title"], untitled["price"], untitled["attributes"]) == ("B2", "B2", 3, [])
    assert (unlisted["product_id"], unlisted["title"]) == ("B3", "B3")
    said = [(e["user_id"], e["product_id"], e["event"], e["value"], int(e["at"].timestamp())) for e in events(made)]
    assert said == [
        ("Ann", "B3", "rating", 1, 1_388_534_400),
        ("Zoe", "B1", "rating", 3, 1_388_534_400),
        ("Zoe", "B2", "rating", 5, 1_388_620_800),
    ]


def test_a_meta_line_that_is_no_literal_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    hostile = f"__import__('pathlib').Path({str(mark)!r}).touch()\n"
    lines = [hostile, "{'asin': \n", "[1]\n", json.dumps({"asin": "B3", "title": "JSON, too"}) + "\n", "(" * 500 + "\n"]
    official(tmp_path, extra="".join(lines))
    made = tree(tmp_path)
    assert ingest.run(made)["products"] == {"rows": 3, "rejected": 4}
    refused = pq.read_table(made.at("products") / "rejected.parquet").to_pylist()
    assert [row["row"] for row in refused] == [3, 4, 5, 7]
    assert dataset.read(made.at("products"), PRODUCTS)["title"].to_pylist()[2] == "JSON, too"
    assert not mark.exists()


def test_the_event_is_the_recipe_s_and_limit_counts_products(tmp_path: Path) -> None:
    official(tmp_path)
    made = tree(tmp_path, "source.event=purchase", "source.limit=1")
    facts = ingest.run(made)
    assert (facts["products"]["rows"], facts["events"]["rows"], facts["events"]["left_out"]) == (1, 1, 2)
    assert [event["event"] for event in events(made)] == ["purchase"]


def test_reviews_of_two_categories_are_named(tmp_path: Path) -> None:
    official(tmp_path)
    official(tmp_path, "Clothing_Shoes_and_Jewelry")
    with pytest.raises(InputError, match=r"reviews_Beauty_5\.json\.gz, reviews_Clothing_Shoes_and_Jewelry_5\.json\.gz"):
        amazon.find(tmp_path)
    (tmp_path / "meta_Beauty.json.gz").unlink()
    assert amazon.find(tmp_path).products.name == "meta_Clothing_Shoes_and_Jewelry.json.gz"


def test_lies_in_knows_beauty_and_nothing_else(tmp_path: Path) -> None:
    assert not amazon.lies_in(tmp_path)
    official(tmp_path)
    assert amazon.lies_in(tmp_path)
    official(tmp_path, "Books")
    assert not amazon.lies_in(tmp_path)  # `find` refuses two
    (tmp_path / "meta_Beauty.json.gz").unlink()
    assert not amazon.lies_in(tmp_path)


def test_sequences_become_events_in_their_order(tmp_path: Path) -> None:
    items = pa.table(
        {
            "item_id": [1, 2, 3],
            "asin": ["A", "B", "C"],
            "title": ["Lip balm", "", None],
            "s3rec_attr_ids": pa.array([[173, 1], [], None], pa.list_(pa.int32())),
        }
    )
    pq.write_table(items, tmp_path / amazon.ITEMS)
    sequences = {
        "user_id": [1, 2],
        "reviewer_id": ["Zoe", "Ann"],
        "items": pa.array([[3, 1, 3], [2]], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(sequences), tmp_path / amazon.SEQUENCES)
    assert amazon.lies_in(tmp_path)
    made = tree(tmp_path)
    facts = ingest.run(made)
    assert facts["events"] == {"rows": 4, "rejected": 0, "left_out": 0, "values_left_out": 0}
    products = dataset.read(made.at("products"), PRODUCTS).to_pylist()
    assert [row["title"] for row in products] == ["Lip balm", "B", "C"]
    assert [dict(row["attributes"] or ()) for row in products] == [{"detail": ["category173", "category1"]}, {}, {}]
    found = [(event["user_id"], event["product_id"], event["event"]) for event in events(made)]
    assert found == [("Ann", "2", "rating"), ("Zoe", "3", "rating"), ("Zoe", "1", "rating"), ("Zoe", "3", "rating")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"amazon2014_beauty_items\.parquet does not exist: set source\.folder"):
        amazon.find(tmp_path)


@pytest.mark.slow
def test_the_whole_cut_is_the_published_benchmark(tmp_path: Path, repository: Path) -> None:
    folder = repository.parent / "shared" / "data"
    if not amazon.lies_in(folder):
        pytest.skip("the Beauty cut is not at ../shared/data")
    facts = ingest.run(config.load("beauty", [f'source.folder="{folder}"', f'store="{tmp_path}"']))
    assert facts["products"] == {"rows": 12_101, "rejected": 0}
    assert facts["events"] == {"rows": 198_502, "rejected": 0, "left_out": 0, "values_left_out": 0}
    assert facts["users"]["rows"] == 22_363
