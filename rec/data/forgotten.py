"""Users who were forgotten (rec/index/forget.py) are left out of what is ingested, and taken out of what was.

The database knows them by hashes alone. Where there is none yet, nobody was forgotten, unless a dataset says otherwise.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rec import artifact, dataset, postgres
from rec.config import Config
from rec.data import parse
from rec.data.clean import Raw
from rec.errors import ArtifactError, DatabaseError
from rec.index import forget, migrations, status
from rec.index.forget import Gone
from rec.schema import EXPOSURES, INTERACTIONS, SAMPLES, USERS, Contract

NAMING = (EXPOSURES, SAMPLES, INTERACTIONS, USERS)
"""The datasets that name users. A user goes out of those first that are read beside the others: what is killed between
two leaves no sample of a user without events."""

_AROUND_IDS = re.compile(r"""[\s,;|:"'\[\]{}]+""")


def read(config: Config) -> Gone:
    """Whom the store's Postgres has as forgotten by the recipe; starts no server where there is no database.

    Raises DatabaseError where a dataset was made without somebody and no database says whom: they would come back.
    """
    found, url = Gone(config.name), status.find(config.store)
    if url is not None:
        with postgres.session(url) as connection:
            if migrations.version(connection):
                migrations.migrate(connection)
                found = forget.gone(connection, config.name)
    if not found:
        _check_nobody_was(config, "there is no database" if url is None else "the database has nobody as forgotten")
    return found


def _check_nobody_was(config: Config, why: str) -> None:
    for contract in (USERS, INTERACTIONS):
        made = artifact.peek(config.at(contract.kind))
        if made is not None and not made.inputs.keys().isdisjoint(("forgotten", "taken_out")):
            raise DatabaseError(
                f"{config.at(contract.kind)} was made without users who were forgotten and {why}, so they would come "
                f"back: set {postgres.URL_VARIABLE}, or put the store's folder {postgres.folder_in(config.store).name} "
                "back, or run `python jobs/database.py restore FILE`; without a backup, forget them again"
            )


class Filter:
    """Leaves the rows of users who are gone out of raw tables, and counts them."""

    def __init__(self, gone: Gone) -> None:
        self.rows = 0
        """How many were left out."""
        self.perhaps = 0
        """How many more, that a reader refused, say no user and have such an id in some value: it may be a price."""
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
        if _user(record) is None:
            self.perhaps += hidden
        else:
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
            with _told(target):
                dataset.rewrite(
                    target,
                    contract,
                    rows=lambda table: table.filter(gone.others(table["user_id"])),
                    rejects=lambda table: table.filter(_of_others(table["record"], gone)),
                    inputs={"taken_out": gone.content_hash},
                )
            taken[target.relative_to(config.root).as_posix()] = count
    return taken


def held_in(config: Config, gone: Gone) -> tuple[list[str], dict[str, str]]:
    """The recipe's datasets, copies as well, that have anybody who is gone; and those that cannot be read, with why."""
    held, unread = [], {}
    for place, _ in _places(config):
        name = place.relative_to(config.root).as_posix()
        try:
            if _held(place, gone):
                held.append(name)
        except (ArtifactError, OSError) as error:
            unread[name] = str(error)
    return held, unread


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
    with _told(target):
        rows = [pc.invert(gone.others(users)) for users in dataset.scan(target, dataset.PART, "user_id")]
        rows += [pc.invert(_of_others(records, gone)) for records in dataset.scan(target, dataset.REFUSED, "record")]
    return sum(pc.sum(held).as_py() or 0 for held in rows)


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """What Arrow says of a file of `target` that is none of its own becomes an ArtifactError that names the folder."""
    try:
        yield
    except (pa.ArrowException, LookupError) as error:  # of a file without the column there is no first one
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{target} is damaged ({reason}): remove it and run its job again") from error


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
    """Whether a refused row has the id of somebody who is gone: as its user, or, where it says none, anywhere.

    Lines, and rows under a file's own names, tell by no name whose they are; a row too many hidden harms nobody.
    """
    user = _user(record)
    if user is not None:
        return gone.has(user)
    texts = {str(value) for value in record.values() if value is not None}
    return any(gone.has(word) for text in texts for word in {text.strip(), *_AROUND_IDS.split(text)})


def _user(record: Mapping[str, Any]) -> str | None:
    """Whose a refused row says it is; None where it does not."""
    user = record.get("user_id")
    return str(user).replace("\0", "").strip() if isinstance(user, str | int) else None
