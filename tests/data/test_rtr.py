"""Rent the Runway: both forms give the same datasets; profiles are what the first rentals say."""

import datetime as dt
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec import dataset
from rec.config import Config, load
from rec.data import ingest, rtr
from rec.errors import InputError
from rec.schema import INTERACTIONS, PRODUCTS, USERS

Row = dict[str, Any]
FULL: Row = {
    "fit": "fit", "user_id": "420272", "bust size": "34c", "item_id": "2260466", "weight": "137lbs", "rating": "10",
    "rented for": "vacation", "review_text": "Loved it.", "body type": "straight & narrow", "review_summary": "So many",
    "category": "romper", "height": "5' 8\"", "size": 14, "age": "28", "review_date": "April 20, 2016",
}  # fmt: skip
ROWS: list[Row] = [
    {**FULL, "item_id": "9", "category": "gown", "size": 8, "age": "30", "review_date": "May 2, 2017"},
    FULL,
    FULL,
    {**FULL, "user_id": "7", "item_id": "9", "category": "gown", "body type": "pear", "bust size": "36ddd/e"},
    {"fit": "small", "user_id": "8", "item_id": "9", "category": "dress", "size": 4, "review_date": "May 1, 2017"},
    {**FULL, "user_id": "8", "item_id": "5", "category": "vest", "size": 9, "review_date": "June 1, 2017"},
    {**FULL, "user_id": "8", "item_id": "5", "category": "coat", "age": "130", "review_date": "July 1, 2017"},
]


def official(folder: Path, rows: list[Row]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / rtr.OFFICIAL).write_bytes(gzip.compress(lines.encode()))


def cut(folder: Path, rows: list[Row]) -> None:
    """The same rows in numbers, as the parquet cut has them."""

    def inches(text: str) -> float:
        feet, rest = text.rstrip('"').split("' ")
        return 12 * int(feet) + int(rest)

    made = []
    for row in rows:
        bust, letter = row.get("bust size"), row.get("bust size", "").lstrip("0123456789")
        made.append(
            {
                "fit": row["fit"], "user_id": int(row["user_id"]), "item_id": int(row["item_id"]),
                "weight_lbs": float(row["weight"].removesuffix("lbs")) if "weight" in row else None,
                "rating": float(row["rating"]) if "rating" in row else None, "rented_for": row.get("rented for"),
                "body_type": row.get("body type"), "category": row["category"], "size": row["size"],
                "age": float(row["age"]) if "age" in row else None,
                "review_date": dt.datetime.strptime(row["review_date"], "%B %d, %Y"),
                "bust_size_num": float(bust[:2]) if bust else None,
                "bust_size_letter": ("e" if letter == "ddd/e" else letter) or None,
                "height_in": float(inches(row["height"])) if "height" in row else None,
            }
        )  # fmt: skip
    schema = pa.Table.from_pylist(made).schema
    for name in ("weight_lbs", "rating", "age", "bust_size_num", "height_in"):
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.float32()))
    schema = schema.set(schema.get_field_index("review_date"), pa.field("review_date", pa.timestamp("ms")))
    pq.write_table(pa.Table.from_pylist(made, schema), folder / rtr.CUT)


def config(folder: Path, *options: str) -> Config:
    return load("rtr", [f'source.folder="{folder}"', f'store="{folder / "store"}"', *options])


def read(made: Config) -> list[list[Row]]:
    return [dataset.read(made.at(contract.kind), contract).to_pylist() for contract in (PRODUCTS, USERS, INTERACTIONS)]


def profiles(made: Config) -> dict[str, Row]:
    return {row["user_id"]: row | {"numeric": dict(row["numeric"] or ())} for row in read(made)[1]}


def test_both_forms_give_the_same_datasets(tmp_path: Path) -> None:
    found, facts, said = [], [], []
    for form in (official, cut):
        folder = tmp_path / form.__name__
        folder.mkdir()
        form(folder, [*ROWS, {**FULL, "user_id": "9", "age": "130"}])
        made = config(folder)
        facts.append({name: part for name, part in ingest.run(made).items() if isinstance(part, dict)})
        found.append(read(made))
        refused = [pq.read_table(made.at(what) / "rejected.parquet") for what in ("users", "events")]
        said.append([table.select(["row", "reason"]).to_pylist() for table in refused])
    assert found[0] == found[1]
    assert facts[0] == facts[1]
    assert said[0] == said[1]
    assert facts[0]["events"] == {"rows": 7, "rejected": 1, "left_out": 0, "values_left_out": 0}
    assert facts[0]["users"] == {"rows": 4, "rejected": 0, "values_left_out": 1}
    assert said[0][1] == [{"row": 2, "reason": "the same rental twice"}]


def test_products_are_items_and_their_most_frequent_category(tmp_path: Path) -> None:
    official(tmp_path, [*ROWS, {key: value for key, value in FULL.items() if key != "category"} | {"item_id": "1"}])
    made = config(tmp_path)
    ingest.run(made)
    products = [(row["product_id"], row["title"], dict(row["attributes"])) for row in read(made)[0]]
    assert products == [
        ("1", "1", {}),
        ("2260466", "romper", {"category": ["romper"]}),
        ("5", "coat", {"category": ["coat"]}),  # coat and vest once each: the first by name
        ("9", "gown", {"category": ["gown"]}),
    ]


def test_a_garment_in_two_sizes_is_two_rentals_and_a_strange_fit_is_left_out(tmp_path: Path) -> None:
    for form in (official, cut):
        folder = tmp_path / form.__name__
        folder.mkdir()
        form(folder, [FULL, {**FULL, "size": 16, "fit": "large"}, {**FULL, "size": 20, "fit": "tight"}])
        made = config(folder)
        assert ingest.run(made)["events"] == {"rows": 3, "rejected": 0, "left_out": 0, "values_left_out": 1}
        assert [(row["size"], row["fit"]) for row in read(made)[2]] == [("14", "fit"), ("16", "large"), ("20", None)]


def test_events_are_rentals_with_occasion_and_rating(tmp_path: Path) -> None:
    official(tmp_path, ROWS)
    made = config(tmp_path)
    ingest.run(made)
    events = read(made)[2]
    first = events[0]
    assert (first["user_id"], first["product_id"], first["event"]) == ("420272", "2260466", "rental")
    assert first["at"] == dt.datetime(2016, 4, 20, tzinfo=dt.UTC)
    assert (first["value"], first["context"]) == (10, "vacation")
    assert [(row["size"], row["size_number"], row["fit"]) for row in (first, events[-2])] == [
        ("14", 14, "fit"), ("9", 9, "fit"),
    ]  # fmt: skip
    assert [(row["value"], row["context"]) for row in events if row["at"].month == 5 and row["user_id"] == "8"] == [
        (None, None)
    ]


def test_a_profile_is_the_first_known_value_in_time_order(tmp_path: Path) -> None:
    official(tmp_path, ROWS)
    made = config(tmp_path)
    assert ingest.run(made)["users"] == {"rows": 3, "rejected": 0, "values_left_out": 0}
    found = profiles(made)
    early = found["420272"]  # the file's first row is a later rental, of another size and age
    assert (early["height_cm"], early["weight_kg"]) == (pytest.approx(172.72), pytest.approx(62.142, abs=1e-3))
    assert early["birth_year"] == 2016 - 28
    assert "size" not in early["numeric"], "a size is of one rental, whose garment the profile is to foretell"
    assert (early["numeric"]["bust_band"], early["numeric"]["cup"]) == (34, 3)
    assert found["7"]["numeric"]["cup"] == 7
    late = found["8"]
    assert (late["height_cm"], late["birth_year"]) == (pytest.approx(172.72), 2017 - 28)
    flags = {name: value for name, value in early["numeric"].items() if name.startswith("body_")}
    assert flags == {
        "body_apple": 0, "body_athletic": 0, "body_full_bust": 0, "body_hourglass": 0, "body_pear": 0, "body_petite": 0,
        "body_straight_narrow": 1,
    }  # fmt: skip


def test_without_a_body_type_no_flag_is_known(tmp_path: Path) -> None:
    official(tmp_path, [{**FULL, "user_id": "3", "body type": None}, FULL])
    made = config(tmp_path)
    ingest.run(made)
    assert not [name for name in profiles(made)["3"]["numeric"] if name.startswith("body_")]


def test_what_cannot_be_read_of_a_profile_is_told_and_left_out(tmp_path: Path) -> None:
    strange = {"body type": "cube", "bust size": "34zz", "height": "tall", "weight": "7lbs", "age": "130"}
    official(tmp_path, [{**FULL, **strange}])
    made = config(tmp_path)
    assert ingest.run(made)["users"] == {"rows": 1, "rejected": 0, "values_left_out": 5}
    reasons = pq.read_table(made.at("users") / "rejected.parquet")["reason"].to_pylist()
    heads = ["body type 'cube' is none", "height_cm 'tall' is", "weight_kg '7lbs' is", "birth_year '1886' is"]
    for head in [*heads, "numeric.cup 'zz' is"]:
        assert [reason for reason in reasons if reason.startswith(head)], head
    assert profiles(made)["420272"]["numeric"] == {"bust_band": 34}


def test_rows_that_are_no_rental_are_refused_once(tmp_path: Path) -> None:
    bad = [
        {**FULL, "review_date": "some day", "bust size": "40d"},
        {**FULL, "item_id": None},
        {**FULL, "user_id": None},
    ]
    official(tmp_path, [*bad, FULL])
    with gzip.open(tmp_path / rtr.OFFICIAL, "at") as file:
        file.write("no json\n")
    made = config(tmp_path)
    facts = ingest.run(made)
    assert facts["products"] == {"rows": 1, "rejected": 0}
    assert facts["events"] == {"rows": 1, "rejected": 4, "left_out": 0, "values_left_out": 0}
    assert profiles(made)["420272"]["numeric"]["bust_band"] == 34, "a refused rental says nothing of the user"
    reasons = pq.read_table(made.at("events") / "rejected.parquet")["reason"].to_pylist()
    assert sorted(reason.split(" is ")[-1] for reason in reasons) == [
        "empty", "empty", "neither ISO 8601 nor epoch seconds within 1990 to 2100", "no JSON object",
    ]  # fmt: skip


def test_cups_are_in_the_order_of_their_sizes(tmp_path: Path) -> None:
    cups = ["aa", "a", "b", "c", "d", "d+", "dd", "ddd/e", "f", "g", "h", "i", "j"]
    official(tmp_path, [{**FULL, "user_id": f"u{i:02d}", "bust size": f"34{cup}"} for i, cup in enumerate(cups)])
    made = config(tmp_path)
    ingest.run(made)
    assert [row["numeric"]["cup"] for row in profiles(made).values()] == list(range(13))


def test_limit_reads_the_first_products(tmp_path: Path) -> None:
    official(tmp_path, ROWS)
    made = config(tmp_path, "source.limit=1")
    facts = ingest.run(made)
    assert facts["events"] == {"rows": 3, "rejected": 1, "left_out": 3, "values_left_out": 0}
    assert [row["product_id"] for row in read(made)[0]] == ["9"]


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither renttherunway_final_data\.json\.gz nor rtr_interactions\.parquet"):
        rtr.find(tmp_path)
    official(tmp_path, [{"user_id": "1"}])
    with pytest.raises(
        InputError, match=r"renttherunway_final_data\.json\.gz has no column 'item_id' for 'product_id'"
    ):
        ingest.run(config(tmp_path))


@pytest.mark.slow
def test_the_whole_cut(tmp_path: Path, repository: Path) -> None:
    folder = repository.parent / "shared" / "data"
    if not (folder / rtr.CUT).is_file():
        pytest.skip("the Rent the Runway cut is not at ../shared/data")
    made = load("rtr", [f'source.folder="{folder}"', f'store="{tmp_path}"'])
    facts = ingest.run(made)
    rows = pq.ParquetFile(folder / rtr.CUT).metadata.num_rows
    assert facts["products"] == {"rows": 5_850, "rejected": 0}
    assert facts["users"]["rows"] == 105_571
    assert facts["events"]["rows"] + facts["events"]["rejected"] == rows == 192_544
    assert facts["events"]["rejected"] == 190
    # Every value is known in the user's first rental, so that no later one was read for a profile (`rec.data.rtr`).
    raw = pq.read_table(folder / rtr.CUT).to_pandas().drop_duplicates()
    by_user = raw.sort_values("review_date", kind="stable").groupby("user_id")
    columns = ["weight_lbs", "height_in", "age", "bust_size_num", "bust_size_letter", "body_type"]
    assert (
        (by_user[columns].first().isna() == by_user.head(1).set_index("user_id")[columns].isna().sort_index())
        .all()
        .all()
    )
