"""Generic files through the whole stage: what is written is what the files said, whatever their format."""

import csv
import datetime as dt
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec import artifact, dataset, sizes
from rec.config import Config
from rec.data import ingest
from rec.errors import ConfigError, InputError
from rec.schema import INTERACTIONS, PRODUCTS, USERS

Row = dict[str, Any]
FORMATS = ("csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "parquet")
PRODUCT_ROWS: list[Row] = [
    {
        "sku": "b",
        "name": "Wool Coat",
        "text": 'Warm,\n"double" coat',
        "tags": "wool | long",
        "leg": "",
        "cost": "120.5",
    },
    {"sku": "a", "name": "청바지", "text": "", "tags": "denim, slim", "leg": "76.5", "cost": "49"},
]
USER_ROWS: list[Row] = [
    {"uid": "u1", "cm": "171.5", "kg": "", "shoe": "41"},
    {"uid": "cold", "cm": "", "kg": "60", "shoe": ""},
]
EVENT_ROWS: list[Row] = [
    {"who": "u2", "what": "a", "how": "View", "when": "2025-03-03T10:00:00+09:00", "why": "면접"},
    {"who": "u1", "what": "b", "how": "purchase", "when": "2025-03-04T10:00:00Z", "why": ""},
    {"who": "u1", "what": "a", "how": "cart", "when": "2025-03-03", "why": "gift"},
    {"who": "u1", "what": "b", "how": "view", "when": "2025-03-03", "why": ""},
]
COLUMNS = {
    "products": {"product_id": "sku", "title": "name", "description": "text", "price": "cost"},
    "users": {"user_id": "uid", "height_cm": "cm", "weight_kg": "kg"},
    "events": {"user_id": "who", "product_id": "what", "event": "how", "at": "when", "context": "why"},
    "attributes": ["tags"],
    "measurements": ["leg"],
    "numeric": ["shoe"],
}


def save(path: Path, rows: list[Row]) -> str:
    """Write `rows` in the format that the file name says; returns the name."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path.name
    text = io.StringIO(newline="")
    if name.endswith(".jsonl"):
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
    return path.name


def config(
    folder: Path, ending: str = "csv", *, products: list[Row] | None = None, users: list[Row] | None = None,
    events: list[Row] | None = None, **source: Any,
) -> Config:  # fmt: skip
    """The three files written under `folder`, and a config that reads them."""
    names = {
        "products": save(folder / f"products.{ending}", products or PRODUCT_ROWS),
        "users": save(folder / f"users.{ending}", users or USER_ROWS),
        "events": save(folder / f"events.{ending}", events or EVENT_ROWS),
    }
    return Config.model_validate(
        {
            "name": "shop",
            "store": str(folder / "store"),
            "source": {"kind": "files", "folder": str(folder), "columns": COLUMNS, **names, **source},
        }
    )


def read(made: Config) -> tuple[list[Row], list[Row], list[Row]]:
    return tuple(
        dataset.read(made.at(contract.kind), contract).to_pylist() for contract in (PRODUCTS, USERS, INTERACTIONS)
    )


def reasons(made: Config, what: str) -> list[tuple[int, str]]:
    return [(row["row"], row["reason"]) for row in pq.read_table(made.at(what) / "rejected.parquet").to_pylist()]


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_datasets(tmp_path: Path, ending: str) -> None:
    made = config(tmp_path, ending)
    facts = ingest.run(made)
    assert (facts["products"]["rows"], facts["users"]["rows"], facts["events"]["rows"]) == (2, 3, 4)
    assert facts["events"]["rejected"] == 0
    products, users, events = read(made)
    assert [row["product_id"] for row in products] == ["a", "b"]
    jeans, coat = products
    assert jeans["title"] == "청바지"
    assert jeans["description"] is None
    assert dict(jeans["attributes"]) == {"tags": ["denim", "slim"]}
    assert dict(jeans["measurements"]) == {"leg": 76.5}
    assert coat["description"] == 'Warm,\n"double" coat'
    assert dict(coat["attributes"]) == {"tags": ["wool", "long"]}
    assert coat["measurements"] == []
    assert (coat["price"], coat["currency"], coat["available"]) == (120.5, "USD", True)
    assert [row["user_id"] for row in users] == ["cold", "u1", "u2"]
    assert (users[1]["height_cm"], users[1]["weight_kg"], dict(users[1]["numeric"])) == (171.5, None, {"shoe": 41.0})
    assert users[2]["height_cm"] is None  # only an event names this user
    # Ties in time keep the order of the file.
    assert [(row["user_id"], row["product_id"], row["event"]) for row in events] == [
        ("u1", "a", "cart"), ("u1", "b", "view"), ("u1", "b", "purchase"), ("u2", "a", "view"),
    ]  # fmt: skip
    assert events[3]["at"] == dt.datetime(2025, 3, 3, 1, tzinfo=dt.UTC)
    assert events[3]["context"] == "면접"


# csv has no null: blank and missing are one; carriage returns are line ends to some readers.
CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00", exclude_categories=("Cs",)), max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(titles=st.lists(CELL.filter(lambda text: text.strip()), min_size=1, max_size=5), data=st.data())
def test_any_text_survives_any_format(tmp_path: Path, titles: list[str], data: st.DataObject) -> None:
    ending = data.draw(st.sampled_from(FORMATS))
    rows = [
        {**PRODUCT_ROWS[0], "sku": f"p{i}", "name": title, "text": data.draw(CELL)} for i, title in enumerate(titles)
    ]
    made = config(tmp_path, ending, products=rows, events=[{**EVENT_ROWS[0], "what": "p0"}])
    ingest.run(made)
    found = dataset.read(made.at("products"), PRODUCTS).to_pylist()
    kept = [(row["name"].strip(), row["text"].strip() or None) for row in rows]
    # Arrow and Python differ on a few exotic blanks; both are compared after Python's strip.
    assert [(row["title"].strip(), (row["description"] or "").strip() or None) for row in found] == kept


def test_jsonl_and_parquet_keep_lists_and_numbers(tmp_path: Path) -> None:
    rows = [
        {**PRODUCT_ROWS[0], "tags": ["a, b", "c"], "cost": 10, "leg": 70.5},
        {"sku": "x", "name": "X", "tags": None},
    ]
    for ending in ("jsonl", "parquet"):
        made = config(tmp_path, ending, products=rows, events=[{**EVENT_ROWS[0], "what": "b", "when": 1_741_000_000}])
        ingest.run(made)
        products, _, events = read(made)
        assert dict(products[0]["attributes"]) == {"tags": ["a, b", "c"]}
        assert (products[0]["price"], dict(products[0]["measurements"])) == (10.0, {"leg": 70.5})
        assert events[0]["at"] == dt.datetime.fromtimestamp(1_741_000_000, dt.UTC)


def test_bad_rows_are_kept_apart_with_place_and_reason(tmp_path: Path) -> None:
    good = PRODUCT_ROWS[0]
    products = [
        good,
        {**good, "name": "again"},
        {**good, "sku": "c", "name": "  "},
        {**good, "sku": "d", "cost": "-1"},
        {**good, "sku": "e", "cost": "cheap"},
        {**good, "sku": "f", "leg": "-3"},
        {**good, "sku": ""},
        {**good, "sku": "g"},
    ]
    users = [*USER_ROWS, {**USER_ROWS[0], "cm": "170"}, {"uid": "u9", "cm": "tall", "kg": "", "shoe": ""}]
    event = EVENT_ROWS[1]
    events = [
        event,
        {**event, "how": "stole"},
        {**event, "when": "soon"},
        {**event, "when": ""},
        {**event, "what": "gone"},
        {**event, "who": ""},
        {**event, "what": "g"},
    ]
    made = config(tmp_path, products=products, users=users, events=events)
    facts = ingest.run(made)
    assert (facts["products"]["rows"], facts["products"]["rejected"]) == (2, 6)
    assert facts["users"] == {"rows": 3, "rejected": 1, "values_left_out": 1}
    assert (facts["events"]["rows"], facts["events"]["rejected"]) == (2, 5)
    assert reasons(made, "products") == [
        (1, "product_id 'b' occurs twice"),
        (2, "title is empty"),
        (3, "price '-1' is not a price"),
        (4, "price 'cheap' is not a price"),
        (5, "measurements.leg '-3' is not a length in cm"),
        (6, "product_id is empty"),
    ]
    repeated, tall = reasons(made, "users")
    assert repeated == (2, "user_id 'u1' occurs twice")
    assert (tall[0], tall[1].split(":")[0]) == (3, "height_cm 'tall' is no height of a person in cm (50 to 250)")
    assert [row for row, _ in reasons(made, "events")] == [1, 2, 3, 4, 5]
    assert "none of view, cart" in reasons(made, "events")[0][1]
    assert reasons(made, "events")[3][1] == "product_id 'gone' is not in the catalogue"
    record = json.loads(pq.read_table(made.at("products") / "rejected.parquet")["record"][3].as_py())
    assert record["price"] == "cheap"


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_nul_characters_and_numbers_beyond_float32_never_arrive(tmp_path: Path, ending: str) -> None:
    good = PRODUCT_ROWS[0]
    products = [
        {**good, "text": "warm\0 coat", "tags": "wo\0ol"},
        {**good, "sku": "c\0"},
        {**good, "sku": "d", "name": "Co\0at"},
        {**good, "sku": "e", "cost": "1e39"},
        {**good, "sku": "f", "leg": "1e300"},
    ]
    users = [*USER_ROWS, {**USER_ROWS[0], "uid": "u\x007"}]
    made = config(tmp_path, ending, products=products, users=users, events=EVENT_ROWS[1:2])
    ingest.run(made)
    kept = read(made)[0]
    assert [row["product_id"] for row in kept] == ["b"]
    assert kept[0]["description"] == "warm coat"
    assert dict(kept[0]["attributes"]) == {"tags": ["wool"]}
    assert reasons(made, "products") == [
        (1, "product_id 'c\\x00' holds a NUL character"),
        (2, "title 'Co\\x00at' holds a NUL character"),
        (3, "price '1e39' is not a price"),
        (4, "measurements.leg '1e300' is not a length in cm"),
    ]
    assert reasons(made, "users") == [(2, "user_id 'u\\x007' holds a NUL character")]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_profile_value_that_no_person_has_is_left_out_alone(tmp_path: Path, ending: str) -> None:
    users = [
        {"uid": "metres", "cm": "1.7", "kg": "62 kg", "shoe": "41"},
        {"uid": "feet", "cm": "5' 8\"", "kg": "137lbs", "shoe": "9 UK"},
        {"uid": "both", "cm": "999", "kg": "-3", "shoe": ""},
        {"uid": "both", "cm": "2", "kg": "1", "shoe": "x"},
        {"uid": "u1", "cm": "1.72 m", "kg": "300", "shoe": ""},
    ]
    made = config(tmp_path, ending, users=users)
    facts = ingest.run(made)
    assert facts["users"] == {"rows": 5, "rejected": 1, "values_left_out": 4}
    found = {row["user_id"]: row for row in read(made)[1]}
    profile = {name: [row["height_cm"], row["weight_kg"], dict(row["numeric"] or ())] for name, row in found.items()}
    assert profile["metres"] == [None, 62, {"shoe": 41}]
    assert profile["feet"] == [pytest.approx(172.72), pytest.approx(62.142, abs=1e-3), {}]
    assert profile["both"] == [None, None, {}]
    assert profile["u1"] == [172, 300, {}]
    assert sorted(reasons(made, "users")) == [
        (
            0,
            "height_cm '1.7' is no height of a person in cm (50 to 250): give centimetres, or write the unit ('1.7 m')",
        ),
        (1, "numeric.shoe '9 UK' is no number: give a number without a unit"),
        (
            2,
            "height_cm '999' is no height of a person in cm (50 to 250): give centimetres, or write the unit ('1.7 m')",
        ),
        (
            2,
            "weight_kg '-3' is no weight of a person in kg (20 to 300): give kilograms, or write the unit ('137 lbs')",
        ),
        (3, "user_id 'both' occurs twice"),
    ]


@pytest.mark.parametrize(
    ("column", "wrong", "right", "message"),
    [
        ("kg", 137, "137 lbs", "median weight_kg of 100 users is 137, which is no median in kg .*pounds.*'137 lbs'"),
        ("cm", 65, "65 in", "median height_cm of 100 users is 65, which is no median in cm .*inches.*'68 in'"),
    ],
)
def test_a_whole_column_in_another_unit_is_an_error(
    tmp_path: Path, column: str, wrong: int, right: str, message: str
) -> None:
    def users(value: object, count: int) -> list[Row]:
        empty = {"cm": "", "kg": "", "shoe": ""}
        return [{"uid": f"v{number}", **empty, column: value} for number in range(count)]

    made = config(tmp_path, users=[*users(wrong, 100), {"uid": "gap", "cm": "", "kg": "", "shoe": ""}])
    with pytest.raises(InputError, match=message):
        ingest.run(made)
    assert not made.root.exists()
    sure = {"cm": "98 cm", "kg": "111 kg"}[column]  # children, or a shop for the heavy: who writes the unit means it
    for fine in (users(wrong, 99), users(right, 100), users(sure, 100)):
        facts = ingest.run(config(tmp_path, users=fine))
        assert facts["users"] == {"rows": len(fine) + 2, "rejected": 0, "values_left_out": 0}


def test_an_event_told_twice_counts_once_unless_its_time_is_a_day(tmp_path: Path) -> None:
    event = {**EVENT_ROWS[1], "when": "2025-03-04T10:00:00Z", "why": "gift"}
    day = {**EVENT_ROWS[1], "when": "2025-03-04"}
    others = [
        {**event, "who": "u2"},
        {**event, "what": "a"},
        {**event, "how": "view"},
        {**event, "when": "2025-03-04T10:00:01Z"},
        {**event, "why": ""},
    ]
    made = config(tmp_path, events=[event, *others, {**event, "when": "2025-03-04T19:00:00+09:00"}, day, day, event])
    assert ingest.run(made)["events"] == {"rows": 8, "rejected": 2, "left_out": 0, "values_left_out": 0}
    assert reasons(made, "events") == [(6, "the same event twice"), (9, "the same event twice")]


def test_an_event_in_the_future_is_refused_but_for_a_day_of_skew(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    ahead = [dt.timedelta(hours=23), dt.timedelta(hours=25), dt.timedelta(days=9_000)]
    made = config(tmp_path, events=[{**EVENT_ROWS[1], "when": (now + span).isoformat()} for span in ahead])
    assert ingest.run(made)["events"] == {"rows": 1, "rejected": 2, "left_out": 0, "values_left_out": 0}
    assert [row for row, _ in reasons(made, "events")] == [1, 2]
    assert "lies in the future: check its unit and its time zone" in reasons(made, "events")[0][1]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_size_and_a_fit_that_cannot_be_are_left_out_alone(tmp_path: Path, ending: str) -> None:
    told = [("8", "fit"), (" EU 38 ", "Small"), ("34/32", "tight"), ("M", ""), ("x" * 200, "large"), ("", "too large")]
    days = [f"2025-03-{day:02d}T10:00:00Z" for day in range(1, 7)]
    rows = [
        {**EVENT_ROWS[1], "when": day, "cut": size, "feel": fit} for day, (size, fit) in zip(days, told, strict=True)
    ]
    columns = {**COLUMNS, "events": {**COLUMNS["events"], "size": "cut", "fit": "feel"}}
    made = config(tmp_path, ending, events=rows, columns=columns)
    assert ingest.run(made)["events"] == {"rows": 6, "rejected": 0, "left_out": 0, "values_left_out": 3}
    assert [(row["size"], row["size_number"], row["fit"]) for row in read(made)[2]] == [
        ("8", 8, "fit"), ("EU 38", 38, "small"), ("34/32", 34, None), ("M", None, None), (None, None, "large"),
        (None, None, None),
    ]  # fmt: skip
    assert [(row, reason[:60]) for row, reason in sorted(reasons(made, "events"))] == [
        (2, "fit 'tight' is none of small, fit, large"),
        (4, f"size '{'x' * 54}"),
        (5, "fit 'too large' is none of small, fit, large"),
    ]


@pytest.mark.parametrize(
    ("size", "read_as"),
    [("0", 0), ("12W", 12), ("8,5", 8.5), ("32 x 34", 32), ("S/M", None), ("one size", None), ("8 to 10", None)],
)
def test_a_size_has_a_number_where_it_is_plainly_one(size: str, read_as: float | None) -> None:
    assert sizes.number(size) == read_as


def test_a_json_list_where_one_value_belongs_refuses_its_row_alone(tmp_path: Path) -> None:
    products = [*PRODUCT_ROWS, {**PRODUCT_ROWS[0], "sku": "c", "name": ["a"]}, {**PRODUCT_ROWS[0], "sku": ["d"]}]
    made = config(tmp_path, "jsonl", products=products)
    facts = ingest.run(made)
    assert (facts["products"]["rows"], facts["products"]["rejected"]) == (2, 2)
    assert reasons(made, "products") == [
        (2, "name ['a'] is a list, not one value"),
        (3, "sku ['d'] is a list, not one value"),
    ]


@pytest.mark.parametrize(("cell", "kind"), [(["a"], "list"), ({"ko": "a"}, "struct"), (b"\xff", "binary")])
def test_a_column_of_an_unreadable_type_is_named_with_its_file(tmp_path: Path, cell: Any, kind: str) -> None:
    made = config(tmp_path, "parquet", products=[{**PRODUCT_ROWS[0], "name": cell}])
    with pytest.raises(
        InputError, match=rf"products\.parquet: column 'name' of type {kind}.* cannot be read as 'title'"
    ):
        ingest.run(made)


def test_a_refused_row_does_not_reserve_its_id(tmp_path: Path) -> None:
    made = config(tmp_path, products=[{**PRODUCT_ROWS[0], "cost": "x"}, PRODUCT_ROWS[0], PRODUCT_ROWS[1]])
    assert ingest.run(made)["products"]["rows"] == 2


def test_broken_lines_are_refused_one_by_one(tmp_path: Path) -> None:
    made = config(tmp_path)
    with (tmp_path / "events.csv").open("a") as file:
        file.write("too,many,cells,in,this,line\nu3,a,view,2025-03-03,\nshort\n")
    facts = ingest.run(made)
    assert (facts["events"]["rows"], facts["events"]["rejected"]) == (5, 2)
    assert [row for row, _ in reasons(made, "events")] == [4, 6]

    lines = config(tmp_path, "jsonl")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"who": \n[1]\n{"who": "u3", "what": "gone", "how": "view", "when": 1741000000}\n')
    ingest.run(lines)
    assert [row for row, _ in reasons(lines, "events")] == [4, 5, 6]


def test_same_input_same_bytes_and_no_second_run(tmp_path: Path) -> None:
    made = config(tmp_path)
    ingest.run(made)
    hashes = [artifact.peek(made.at(name)).content_hash for name in ("products", "users", "events")]
    assert ingest.run(made)["skipped"]
    elsewhere = made.model_copy(update={"store": str(tmp_path / "other")})
    assert not ingest.run(elsewhere)["skipped"]
    assert [artifact.peek(elsewhere.at(name)).content_hash for name in ("products", "users", "events")] == hashes
    assert str(tmp_path) not in (made.at("products") / artifact.MANIFEST).read_text()
    save(tmp_path / "events.csv", EVENT_ROWS[:3])
    assert not ingest.run(made)["skipped"]


def test_files_of_one_name_in_two_folders_are_two_inputs(tmp_path: Path) -> None:
    for what, rows in (("products", PRODUCT_ROWS), ("events", EVENT_ROWS)):
        (tmp_path / what).mkdir()
        save(tmp_path / what / "part.csv", rows)
    named = {"products": "products/part.csv", "users": "", "events": "events/part.csv"}
    made = config(tmp_path)
    made = made.model_copy(update={"source": made.source.model_copy(update=named)})
    ingest.run(made)
    assert ingest.run(made)["skipped"]
    save(tmp_path / "products" / "part.csv", [{**PRODUCT_ROWS[0], "name": "Silk Coat"}, PRODUCT_ROWS[1]])
    assert not ingest.run(made)["skipped"]
    assert read(made)[0][1]["title"] == "Silk Coat"


def test_limit_reads_the_first_products_and_the_events_on_them(tmp_path: Path) -> None:
    made = config(tmp_path, limit=1)
    facts = ingest.run(made)
    assert (facts["products"]["rows"], facts["events"]["rows"], facts["events"]["left_out"]) == (1, 2, 2)
    assert facts["events"]["rejected"] == 0


def test_events_without_a_kind_column(tmp_path: Path) -> None:
    columns = {**COLUMNS, "events": {key: value for key, value in COLUMNS["events"].items() if key != "event"}}
    made = config(tmp_path, columns=columns, event="rental")
    ingest.run(made)
    assert {row["event"] for row in read(made)[2]} == {"rental"}


def mapped(what: str, **columns: str) -> dict[str, Any]:
    return {**COLUMNS, what: {**COLUMNS[what], **columns}}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("limit", [None, 1])
def test_wrong_column_names_the_column_the_file_and_the_nearest(tmp_path: Path, ending: str, limit: int | None) -> None:
    made = config(tmp_path, ending, columns=mapped("products", title="Nane"), limit=limit)
    with pytest.raises(InputError, match=rf"products\.{ending} has no column 'Nane' for 'title'; nearest: 'name'"):
        ingest.run(made)
    assert not made.root.exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (mapped("products", titel="name"), "no field 'titel'; nearest: 'title'"),
        (
            {**COLUMNS, "events": {"user_id": "who", "product_id": "what"}},
            r"events.*'at'.*--set source\.columns\.events\.at",
        ),
    ],
)
def test_wrong_mapping_is_a_config_error(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ingest.run(config(tmp_path, columns=columns))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    made = config(tmp_path)
    (tmp_path / "events.csv").unlink()
    with pytest.raises(InputError, match=r"events\.csv does not exist: check source\.folder"):
        ingest.run(made)
    for ending, content, message in (
        ("parquet", b"not parquet", r"events\.parquet cannot be read as parquet"),
        ("csv", b"", r"events\.csv has no header line"),
        ("csv", b"who,what,how,when,why\n", "no events to use"),
        ("jsonl", b"", "no events to use"),
        ("csv", b"who,what,how,who\n", "two columns named 'who'"),
        (
            "csv",
            b"who,what,how,when,why\nu1,a,view,2025-03-03,\xff\xfe\n",
            r"events\.csv cannot be read as csv in UTF-8",
        ),
        ("csv.gz", b"who,what", r"events\.csv\.gz cannot be read as csv"),
        ("jsonl", b'{"who": "\xff"}\n', r"events\.jsonl cannot be read as jsonl in UTF-8"),
    ):
        made = config(tmp_path, ending)
        (tmp_path / f"events.{ending}").write_bytes(content)
        with pytest.raises(InputError, match=message):
            ingest.run(made)
        assert not made.root.exists()
    (tmp_path / "events.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"ends in none of \.csv"):
        ingest.run(
            config(tmp_path, events=None).model_copy(
                update={"source": made.source.model_copy(update={"events": "events.xlsx"})}
            )
        )


def test_a_mapping_that_fits_no_row_says_why(tmp_path: Path) -> None:
    made = config(tmp_path, columns=mapped("events", product_id="who"))
    with pytest.raises(InputError, match="all 4 rows are refused, the first: product_id 'u2' is not in the catalogue"):
        ingest.run(made)
    assert not made.root.exists()


def test_large_files_stream_in_batches_with_true_row_numbers(tmp_path: Path) -> None:
    rows = [{**EVENT_ROWS[1], "who": f"u{i % 50}", "when": str(1_741_000_000 + i)} for i in range(70_000)]
    rows[69_000]["how"] = "stole"
    for ending in ("csv", "jsonl", "parquet"):
        made = config(tmp_path, ending, events=rows)
        assert ingest.run(made)["events"]["rows"] == 69_999
        assert reasons(made, "events")[0][0] == 69_000
