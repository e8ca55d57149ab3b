"""H&M articles, customers and transactions: the official Kaggle csv files, or their compact parquet cut.

    official   articles.csv   transactions_train.csv   customers.csv (optional: age)
    cut        hm_articles.parquet   hm_transactions_*.parquet (one file, customers as numbers)

Words stay H&M's own; the vocabulary maps them. Prices are in H&M's own scaled unit. Articles carry no
launch date: the first sale is no substitute, since it would tell a model which article sells, and when.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.config import Source
from rec.data import parse
from rec.data.clean import Raw
from rec.data.files import first, read
from rec.dataset import Rejects
from rec.errors import InputError

LAST_YEAR = 2020  # of the transactions; a customer's age is as of then
_ARTICLES = {
    "product_id": "article_id",
    "title": "prod_name",
    "description": "detail_desc",
    "group_id": "product_code",
    "brand": "index_name",
    "attributes.category": "product_type_name",
    "attributes.pattern": "graphical_appearance_name",
    "attributes.colour": "colour_group_name",
    "attributes.gender": "index_group_name",
    "attributes.section": "section_name",
    "attributes.garment_group": "garment_group_name",
}
_SINGLE = [name for name in _ARTICLES if name.startswith("attributes.")]
_GENDER = re.compile(r"\b(womens?|ladies|mens?|boys?|girls?|kids|baby)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one form of the data set."""

    articles: Path
    transactions: Path
    customers: Path | None
    customer_column: str

    def all(self) -> dict[str, Path]:
        """The files in use, by what they hold."""
        found = {"products": self.articles, "users": self.customers, "events": self.transactions}
        return {what: file for what, file in found.items() if file is not None}


def find(folder: Path) -> Files:
    """The official files in `folder`, or else the parquet cut."""
    if (folder / "articles.csv").is_file():
        transactions, customers = folder / "transactions_train.csv", folder / "customers.csv"
        if not transactions.is_file():
            raise InputError(
                f"{folder} has articles.csv but no transactions_train.csv: put the official file beside it"
            )
        return Files(folder / "articles.csv", transactions, customers if customers.is_file() else None, "customer_id")
    cuts = sorted(folder.glob("hm_transactions_*.parquet"))
    if (folder / "hm_articles.parquet").is_file() and len(cuts) == 1:
        return Files(folder / "hm_articles.parquet", cuts[0], None, "customer_ix")
    raise InputError(
        f"{folder} holds neither articles.csv with transactions_train.csv nor hm_articles.parquet with one "
        "hm_transactions_*.parquet: set source.folder to the folder of the H&M files"
    )


def products(files: Files, source: Source, rejects: Rejects) -> Iterator[Raw]:
    """Raw products, one per article."""
    for raw in first(read(files.articles, _ARTICLES, rejects), source.limit):
        table = raw.table
        for name in _SINGLE:  # a name that holds a comma is still one value
            values = table.column(name)
            table = table.set_column(table.column_names.index(name), name, _one_each(values.to_pylist()))
        gender = [
            [_gender(section[0], group[0])] if section and group else group
            for section, group in zip(
                table["attributes.section"].to_pylist(), table["attributes.gender"].to_pylist(), strict=True
            )
        ]
        table = table.set_column(table.column_names.index("attributes.gender"), "attributes.gender", _lists(gender))
        yield Raw(raw.source, raw.positions, _with_padded_ids(table))


def events(files: Files, rejects: Rejects) -> Iterator[Raw]:
    """Raw events, one per transaction; all are purchases."""
    mapping = {"user_id": files.customer_column, "product_id": "article_id", "at": "t_dat", "value": "price"}
    for raw in read(files.transactions, mapping, rejects):
        yield Raw(raw.source, raw.positions, _with_padded_ids(raw.table))


def users(files: Files, rejects: Rejects, buyers: pa.Array) -> Iterator[Raw]:
    """Raw users with a birth year, for customers among `buyers`; none where there is no customers file."""
    if files.customers is None:
        return
    for raw in read(files.customers, {"user_id": "customer_id", "age": "age"}, rejects):
        chosen = pc.is_in(raw.table.column("user_id"), buyers)
        table = raw.table.filter(chosen)
        age, bad = parse.number(table.column("age"))
        born = pc.if_else(
            pa.array(bad), table.column("age"), pa.array(LAST_YEAR - age, mask=np.isnan(age)).cast("string")
        )
        table = table.drop_columns("age").append_column("birth_year", born)  # a bad age is told as a bad year
        yield Raw(raw.source, raw.positions[chosen.to_numpy()], table)


def _gender(section: str, group: str) -> str:
    """The section's own word for whom it is, or else the index group (`Ladieswear`, `Sport`)."""
    found = _GENDER.search(section)
    return found.group(0) if found else group


def _one_each(values: list[str | None]) -> pa.Array:
    return _lists([[value] if value else [] for value in values])


def _lists(values: list[list[str]]) -> pa.Array:
    return pa.array(values, pa.list_(pa.string()))


def _with_padded_ids(table: pa.Table) -> pa.Table:
    """Article ids as the ten digits of the official files; numbers lost their leading zero."""
    ids = pc.utf8_lpad(table.column("product_id").cast(pa.string()), 10, "0")
    return table.set_column(table.column_names.index("product_id"), "product_id", ids)
