"""The H&M adapter on the official csv form, on the parquet form, and on the real cut where it lies."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec import dataset
from rec.config import Config, load
from rec.data import ingest
from rec.errors import InputError
from rec.schema import INTERACTIONS, PRODUCTS, USERS

ARTICLES = {
    "article_id": ["0108775015", "0110065001", "0110065002"],
    "product_code": [108775, 110065, 110065],
    "prod_name": ["Strap top", "OP T-shirt (Idro)", "OP T-shirt (Idro)"],
    "product_type_name": ["Vest top", "Bra", "Bra"],
    "graphical_appearance_name": ["Stripe", "Solid", "Solid"],
    "colour_group_name": ["Black", "Light Beige", "White"],
    "index_name": ["Ladieswear", "Lingeries/Tights", "Lingeries/Tights"],
    "index_group_name": ["Ladieswear", "Ladieswear", "Sport"],
    "section_name": ["Womens Everyday Basics", "Collaborations", "Men H&M Sport"],
    "garment_group_name": ["Jersey Basic", "Under-, Nightwear", "Under-, Nightwear"],
    "detail_desc": ["Jersey top with narrow shoulder straps.", 'Soft, "light" bra.', None],
}


def csv_line(values: list[object]) -> str:
    return ",".join("" if value is None else '"' + str(value).replace('"', '""') + '"' for value in values) + "\n"


def official(folder: Path, *, customers: bool = True) -> None:
    rows = [list(row) for row in zip(*ARTICLES.values(), strict=True)]
    (folder / "articles.csv").write_text(csv_line(list(ARTICLES)) + "".join(map(csv_line, rows)))
    (folder / "transactions_train.csv").write_text(
        "t_dat,customer_id,article_id,price,sales_channel_id\n"
        "2020-09-21,bb,0110065002,0.0152,2\n"
        "2020-09-20,bb,0108775015,0.0508,2\n"
        "2020-09-20,bb,0110065001,0.0304,1\n"
        "2020-09-20,aa,0110065001,0.0304,1\n"
    )
    if customers:
        (folder / "customers.csv").write_text("customer_id,FN,age\naa,1.0,30\nbb,,\nnever-bought,,50\n")


def cut(folder: Path) -> None:
    pq.write_table(pa.table(ARTICLES), folder / "hm_articles.parquet")
    transactions = pa.table(
        {
            "t_dat": pa.array([dt.datetime(2020, 9, day) for day in (21, 20, 20, 20)], pa.timestamp("ms")),
            "customer_ix": pa.array([7, 7, 7, 5], pa.int32()),
            "article_id": pa.array([110065002, 108775015, 110065001, 110065001], pa.int32()),
            "price": pa.array([0.0152, 0.0508, 0.0304, 0.0304], pa.float32()),
        }
    )
    pq.write_table(transactions, folder / "hm_transactions_2020w38.parquet")


def config(folder: Path) -> Config:
    return load("hm", [f'source.folder="{folder}"', f'store="{folder / "store"}"'])


@pytest.mark.parametrize("form", [official, cut])
def test_both_forms_give_the_same_products_and_events(tmp_path: Path, form: object) -> None:
    form(tmp_path)
    made = config(tmp_path)
    facts = ingest.run(made)
    assert facts["products"] == {"rows": 3, "rejected": 0}
    products = dataset.read(made.at("products"), PRODUCTS).to_pylist()
    assert [row["product_id"] for row in products] == ARTICLES["article_id"]
    top, bra, other = products
    assert dict(top["attributes"]) == {
        "category": ["Vest top"], "pattern": ["Stripe"], "colour": ["Black"], "gender": ["Womens"],
        "section": ["Womens Everyday Basics"], "garment_group": ["Jersey Basic"],
    }  # fmt: skip
    assert dict(bra["attributes"])["garment_group"] == ["Under-, Nightwear"]  # one value, not two
    assert [dict(row["attributes"])["gender"] for row in (bra, other)] == [["Ladieswear"], ["Men"]]
    assert bra["group_id"] == other["group_id"] != top["group_id"]
    assert (bra["description"], other["description"]) == ('Soft, "light" bra.', None)
    assert (top["price"], top["created_at"]) == (None, None)
    events = dataset.read(made.at("events"), INTERACTIONS).to_pylist()
    user = events[-1]["user_id"]
    assert [row["product_id"] for row in events if row["user_id"] == user] == ["0108775015", "0110065001", "0110065002"]
    assert {row["event"] for row in events} == {"purchase"}
    assert events[-1]["at"] == dt.datetime(2020, 9, 21, tzinfo=dt.UTC)
    assert events[-1]["value"] == pytest.approx(0.0152)


def test_customers_give_birth_years_of_buyers_only(tmp_path: Path) -> None:
    official(tmp_path)
    made = config(tmp_path)
    ingest.run(made)
    users = dataset.read(made.at("users"), USERS).to_pylist()
    assert [(row["user_id"], row["birth_year"]) for row in users] == [("aa", 1990), ("bb", None)]


def test_an_age_that_is_no_number_is_left_out_with_a_reason(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "customers.csv").write_text("customer_id,age\naa,old\nbb,20\n")
    made = config(tmp_path)
    assert ingest.run(made)["users"] == {"rows": 2, "rejected": 0, "values_left_out": 1}
    (reason,) = pq.read_table(made.at("users") / "rejected.parquet")["reason"].to_pylist()
    assert reason.startswith("birth_year 'old' is no year of birth (1900 to ")


def test_customers_file_is_optional(tmp_path: Path) -> None:
    official(tmp_path, customers=False)
    assert ingest.run(config(tmp_path))["users"]["rows"] == 2


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither articles\.csv .* set source\.folder"):
        ingest.run(config(tmp_path))
    official(tmp_path)
    (tmp_path / "transactions_train.csv").unlink()
    with pytest.raises(InputError, match=r"no transactions_train\.csv"):
        ingest.run(config(tmp_path))
    official(tmp_path)
    text = (tmp_path / "articles.csv").read_text()
    (tmp_path / "articles.csv").write_text(text.replace("prod_name", "product_name"))
    with pytest.raises(
        InputError, match=r"articles\.csv has no column 'prod_name' for 'title'; nearest: 'product_name'"
    ):
        ingest.run(config(tmp_path))


@pytest.mark.slow
def test_the_whole_cut(tmp_path: Path, repository: Path) -> None:
    folder = repository.parent / "shared" / "data"
    if not (folder / "hm_articles.parquet").is_file():
        pytest.skip("the H&M cut is not at ../shared/data")
    made = load("hm", [f'source.folder="{folder}"', f'store="{tmp_path}"'])
    facts = ingest.run(made)
    assert facts["products"] == {"rows": 105_542, "rejected": 0}
    assert facts["users"] == {"rows": 68_984, "rejected": 0, "values_left_out": 0}
    assert facts["events"] == {"rows": 240_311, "rejected": 0, "left_out": 0, "values_left_out": 0}
    assert facts["seconds"] < 60
    events = dataset.read(made.at("events"), INTERACTIONS, ["user_id", "at"])
    pairs = list(zip(events["user_id"].to_pylist(), events["at"].cast(pa.int64()).to_pylist(), strict=True))
    assert pairs == sorted(pairs)
