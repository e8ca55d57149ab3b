"""Live events as further events of a source: what `POST /v1/events` took of users and the source does not have.

Those of a day are read from the next day (UTC) on, so that a pipeline that is killed and started again finds the same
ones. Events of anonymous clients are left out: an id of theirs may be that of a user.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from rec import postgres
from rec.config import Config
from rec.data.clean import Raw
from rec.index import live_events, migrations


@dataclass(frozen=True, slots=True)
class Live:
    """The live events of a recipe, oldest first."""

    content_hash: str
    rows: Raw


def read(config: Config) -> Live:
    """All that the store's Postgres has of the recipe; memory holds them."""
    with postgres.session(postgres.url(config.store)) as connection:
        migrations.migrate(connection)
        table = live_events.of_users(connection, config.name)
    digest = hashlib.sha256()
    for name in ("event_id", "received_at"):  # what has the same id is the same event
        digest.update("\0".join(map(str, table.column(name).to_pylist())).encode())
    rows = Raw("live events", np.arange(table.num_rows), table.drop_columns(["event_id", "received_at"]))
    return Live(digest.hexdigest(), rows)
