"""Users who were forgotten (rec/index/forget.py) are left out of what is ingested, and taken out of what was.

The database knows them by hashes alone; where there is none yet, nobody was forgotten.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rec import artifact, dataset, postgres
from rec.config import Config
from rec.data import parse
from rec.data.clean import Raw
from rec.index import forget, migrations
from rec.index.forget import Gone
from rec.schema import EXPOSURES, INTERACTIONS, SAMPLES, USERS, Contract

NAMING = (EXPOSURES, SAMPLES, INTERACTIONS, USERS)
"""The datasets that name users. A user goes out of those first that are read beside the others: what is killed between
two leaves no sample of a user without events."""

_AROUND_IDS = re.compile(r"""[\s,;|:"'\[\]{}]+""")


def read(config: Config) -> Gone:
    """Whom the store's Postgres has as forgotten by the recipe; starts no server where there is no database."""
    if postgres.given() is None and postgres.embedded_major(config.store) is None:
        return Gone(config.name)
    with postgres.session(postgres.url(config.store, create=False)) as connection:
        if migrations.version(connection) == 0:
            return Gone(config.name)
        migrations.migrate(connection)
        return forget.gone(connection, config.name)


class Filter:
    """Leaves the rows of users who are gone out of raw tables, and counts them."""

    def __init__(self, gone: Gone) -> None:
        self.rows = 0
        """How many were left out."""
        self._gone = gone

    def __call__(self, raws: Iterable[Raw]) -> Iterator[Raw]:
        """`raws` without these rows."""
        for raw in raws:
            others = self._gone.others(parse.text(raw.table["user_id"])) if self._gone else None
            if others is None or pc.all(others).as_py():
                yield raw
                continue
            left = raw.table.filter(others)
            self.rows += raw.table.num_rows - left.num_rows
            if left.num_rows:
                yield Raw(raw.source, raw.positions[others.to_numpy()], left)

    def hides(self, record: Mapping[str, Any]) -> bool:
        """Whether a row that its reader refused is of one of them, as far as its values tell."""
        hidden = bool(self._gone) and _names(record, self._gone)
        self.rows += hidden
        return hidden


def take_out(config: Config, gone: Gone, *, but: Collection[Contract] = ()) -> dict[str, int]:
    """Write the datasets of the recipe again without the users who are gone, each whole or not at all.

    So are copies that studies keep in its folder; what `but` names in its own place is left to the caller, who has the
    store to itself (artifact.alone). Returns by place how many rows were taken out of those that had any. The stages
    that made them run again (dataset.rewrite).
    """
    taken: dict[str, int] = {}
    for target, contract in _places(config) if gone else ():
        own = target == config.at(contract.kind)
        if own and contract in but:
            continue
        if own:
            artifact.sweep(target)  # whoever was killed may have left files of before
        if count := _held(target, gone):
            dataset.rewrite(
                target,
                contract,
                rows=lambda table: table.filter(gone.others(table["user_id"])),
                rejects=lambda table: table.filter(_of_others(table["record"], gone)),
                inputs={"taken_out": gone.content_hash},
            )
            taken[target.relative_to(config.root).as_posix()] = count
    return taken


def held_in(config: Config, gone: Gone) -> list[str]:
    """The recipe's datasets, copies as well, that have anybody who is gone."""
    return [place.relative_to(config.root).as_posix() for place, _ in _places(config) if _held(place, gone)]


def _places(config: Config) -> list[tuple[Path, Contract]]:
    """Where datasets that name users may lie in the recipe's folder, in the order of NAMING; links are elsewhere."""
    found = sorted(manifest.parent for manifest in config.root.rglob(artifact.MANIFEST))
    places = []
    for contract in NAMING:
        own = config.at(contract.kind)
        places += [(place, contract) for place in (own, *found) if place.name == contract.kind]
    return list(dict.fromkeys(places))


def _held(target: Path, gone: Gone) -> int:
    """Rows of the dataset at `target`, refused ones as well, that are of users who are gone."""
    if not gone:
        return 0
    rows = [pc.invert(gone.others(users)) for users in dataset.scan(target, dataset.PART, "user_id")]
    rows += [pc.invert(_of_others(records, gone)) for records in dataset.scan(target, dataset.REFUSED, "record")]
    return sum(pc.sum(held).as_py() or 0 for held in rows)


def _of_others(records: pa.ChunkedArray, gone: Gone) -> pa.ChunkedArray:
    """bool[n]: false for texts of refused rows that name somebody who is gone."""
    return pa.chunked_array([pa.array([not _names(_record(text), gone) for text in records.to_pylist()], pa.bool_())])


def _record(text: str) -> Mapping[str, Any]:
    """The refused row that a text holds; one that was cut off is a line."""
    try:
        return dict(json.loads(text))
    except ValueError:
        return {"line": text}


def _names(record: Mapping[str, Any], gone: Gone) -> bool:
    """Whether a refused row has the id of somebody who is gone: as its user, or, where it says none, anywhere."""
    user = record.get("user_id")
    if isinstance(user, str | int):
        return gone.has(str(user).replace("\0", "").strip())
    texts = {str(value) for value in record.values() if value is not None}
    return any(gone.has(word) for text in texts for word in {text.strip(), *_AROUND_IDS.split(text)})
