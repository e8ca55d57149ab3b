"""Where products, users and events come from."""

from typing import Literal

from pydantic import Field

from rec.config.branch import Branch


class Columns(Branch):
    """Which column of the user's file holds which field; a field that is not named is absent."""

    products: dict[str, str] = {}
    """Field of the products contract → column in the products file."""
    users: dict[str, str] = {}
    """Field of the users contract → column in the users file."""
    events: dict[str, str] = {}
    """Field of the events contract → column in the events file."""
    attributes: list[str] = []
    """Columns of the products file to keep as attributes given by the shop, under their own names."""
    measurements: list[str] = []
    """Columns of the products file that are garment measurements, in cm."""
    numeric: list[str] = []
    """Columns of the users file to keep as further numeric profile features."""


class Source(Branch):
    """Where products, users and events come from."""

    kind: Literal["sample", "hm", "amazon", "rtr", "aihub", "kfashion", "files"] = "sample"
    """`sample`: the synthetic catalogue; `hm`: H&M csv or its parquet cut; `amazon`: UCSD's Amazon reviews of 2014
    (5-core) or the parquet cut of Beauty; `rtr`: UCSD's Rent the Runway rentals or their parquet cut; `aihub`,
    `kfashion`: AI Hub's JSON files of 의류 통합 데이터 and of K-Fashion 이미지; `files`: any csv, jsonl or parquet."""
    folder: str = ""
    """Folder of the files (all but `sample`); relative to the working directory."""
    products: str = ""
    """Name of the products file (`files`)."""
    users: str = ""
    """Name of the users file (`files`), empty for none."""
    events: str = ""
    """Name of the events file (`files`)."""
    columns: Columns = Columns()
    """Which of their columns is what (`files`)."""
    event: Literal["view", "cart", "purchase", "rental", "rating"] = "purchase"
    """Kind of the events that name none (`files`, `amazon`)."""
    currency: str = "USD"
    """ISO 4217 code for prices that carry none."""
    limit: int | None = Field(default=None, ge=1)
    """Read only the first n products and the events on them; for a try-out."""
    live_events: bool = False
    """Read what `POST /v1/events` took of users as well, from the recipe's Postgres: events received before today (UTC)
    and in the last 89 days that the source does not have."""
