"""Training requests of the ranker: for each user, the candidates that retrieval returns just before their
second last event, which is the target.

The user tower has not seen that event, and the candidates are made as serving makes them: same vectors,
same exclusions, same merge of sources. Items launched after the event are no candidates. Vectors and the tables
of the sources are those of the whole training period, as serving has them, not those of the target's day. A
user whose target was not retrieved teaches the ranker nothing and is left out, counted as `missed`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rec import artifact, dataset, histories, log, runtime, source_tables
from rec.config import Config, Quotas, Text
from rec.features.popularity import PastPopularity
from rec.histories import Histories
from rec.models import user_tower
from rec.models.user_vectors import UserVectors
from rec.retrieval import Candidates, Excluded, candidates, popularity, search
from rec.schema import INTERACTIONS, PRODUCTS, SAMPLES, USERS
from rec.sources import tables
from rec.state import UserState

USERS_PER_BLOCK = 1_024

MISSED = -1


@dataclass(frozen=True, slots=True)
class Samples:
    """U requests with their targets, in ascending order of user."""

    users: NDArray[np.int64]
    """int64[U] of `Histories`."""
    states: list[UserState]
    candidates: list[Candidates]
    at: NDArray[np.int64]
    """int64[U] UTC microseconds of the target events."""
    labels: NDArray[np.int64]
    """int64[U] position of the target among the candidates."""


def run(config: Config) -> dict[str, Any]:
    """Write the `sources` artifact and the `samples` dataset; returns the counts of the samples."""
    root, target = config.root, config.at("samples")
    inputs = {
        "products": dataset.read_manifest(root / "products", PRODUCTS).content_hash,
        "users": dataset.read_manifest(root / "users", USERS).content_hash,
        "events": dataset.read_manifest(root / "events", INTERACTIONS).content_hash,
        "user_tower": user_tower.manifest(root / "user_tower").content_hash,
        "sources": source_tables.run(config),
    }
    options = {
        "candidates": config.ranker.candidates,
        "quotas": config.ranker.quotas.identity(),
        "max_users": config.ranker.max_users,
        "history": config.user_tower.history,
        "exclude_seen": config.user_tower.exclude_seen,
        "text": config.text.identity(),
        "seed": config.seed,
    }
    work: dict[str, Any] = {"inputs": inputs, "config": options}
    done = artifact.finished(target, kind=SAMPLES.kind, version=SAMPLES.version, **work)
    if done is not None:
        return {"samples": str(target), **done.facts, "skipped": True}
    started = time.monotonic()
    facts: dict[str, Any] = {}
    runtime.start(config.cpus)
    manifest = dataset.write(target, SAMPLES, _retrieved(config, facts), facts=facts, **work)
    return {"samples": str(target), **manifest.facts, "seconds": round(time.monotonic() - started, 1)}


def _retrieved(config: Config, facts: dict[str, Any]) -> Iterator[pa.Table]:
    """Tables of the samples contract in ascending order of user; fills `facts` at the end."""
    h = histories.load(config.root)
    users = _chosen(h, config.ranker.max_users, config.seed)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    found = ray.data.from_arrow(
        [pa.table({"user": users[start : start + USERS_PER_BLOCK]}) for start in range(0, len(users), USERS_PER_BLOCK)]
        or pa.table({"user": users})
    ).map_batches(
        Retrieval,
        fn_constructor_kwargs={
            "root": str(config.root),
            "text": config.text,
            "k": config.ranker.candidates,
            "quotas": config.ranker.quotas,
            "history": config.user_tower.history,
            "exclude_seen": config.user_tower.exclude_seen,
        },
        batch_size=USERS_PER_BLOCK,
        batch_format="pyarrow",
        concurrency=1,
    )
    kept = 0
    with log.bar(total=len(users), what="candidates", unit="user") as bar:
        for table in found.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)
            bar.update(table.num_rows)
            table = table.filter(pc.not_equal(table.column("label"), MISSED))
            kept += table.num_rows
            yield table
    facts.update(users=len(users), missed=len(users) - kept, target_recall=round(kept / max(len(users), 1), 4))


def _chosen(h: Histories, max_users: int | None, seed: int) -> NDArray[np.int64]:
    """int64[U] the ranker's users, ascending; a seeded draw when there are more than `max_users`."""
    users = histories.leave_one_out(h).ranker_users
    if max_users is None or len(users) <= max_users:
        return users
    return np.sort(np.random.default_rng(seed).choice(users, max_users, replace=False))


def training_popularity(h: Histories) -> NDArray[np.int64]:
    """int64[N] events per item in the user tower's training period: no held-out event counts."""
    return popularity(h.items[histories.training_events(h)], h.num_items)


def past_popularity(h: Histories) -> PastPopularity:
    """The same count as of any moment."""
    kept = histories.training_events(h)
    return PastPopularity(h.items[kept], h.at[kept], h.num_items)


class Retrieval:
    """Ray Data stage: user indices in, rows of the samples contract out (label MISSED where not retrieved)."""

    def __init__(self, root: str, text: Text, k: int, quotas: Quotas, history: int, exclude_seen: bool) -> None:
        folder = Path(root)
        self._h = histories.load(folder)
        self._vectors = UserVectors(user_tower.load(folder / "user_tower"), text)
        self._items = load_file(folder / "user_tower" / "item_vectors.safetensors")["item_vectors"]
        self._sources = tables.load(folder / tables.KIND)
        self._created = created_us(folder)
        self._k, self._quotas, self._history, self._exclude_seen = k, quotas, history, exclude_seen

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Columns of SAMPLES for the users of `batch`."""
        users = batch.column("user").to_numpy()
        h, ends = self._h, self._h.offsets[users + 1] - 2
        states = [
            histories.state(h, user, end, self._history, int(h.at[end]), h.contexts[end])
            for user, end in zip(users.tolist(), ends.tolist(), strict=True)
        ]
        vectors, exclude = self._vectors(states), Excluded(self._created, h.at[ends], self._seen(users, ends))
        ann, _ = search(vectors, self._items, self._k, exclude)
        proposed = (self._sources.propose(state) for state in states)
        made = candidates(vectors, self._items, ann, proposed, k=self._k, quotas=self._quotas, exclude=exclude)
        return pa.table(
            {
                "user_id": pa.array([h.user_ids[user] for user in users]),
                "at": pa.array(h.at[ends], pa.timestamp("us", tz="UTC")),
                "label": pa.array(
                    [_position(made[b].rows, int(h.items[end])) for b, end in enumerate(ends)], pa.int32()
                ),
                "rows": _lists([found.rows for found in made], pa.int32()),
                "scores": _lists([found.scores for found in made], pa.float32()),
                "sources": _lists([found.sources for found in made], pa.int32()),
                "cooccurrence": _lists([found.cooccurrence for found in made], pa.float32()),
            }
        )

    def _seen(self, users: NDArray[np.int64], ends: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Item rows that each user had before the target, where these are no candidates."""
        starts = self._h.offsets[users] if self._exclude_seen else ends
        return [self._h.items[start:end] for start, end in zip(starts, ends, strict=True)]


def created_us(root: Path) -> NDArray[np.int64]:
    """int64[N] when each item was launched, UTC microseconds, -1 where unknown."""
    column = dataset.read(root / "products", PRODUCTS, ["created_at"]).column("created_at")
    return pc.fill_null(column.cast(pa.int64()), -1).to_numpy().astype(np.int64)


def _position(rows: NDArray[np.int64], target: int) -> int:
    found = np.flatnonzero(rows == target)
    return int(found[0]) if len(found) else MISSED


def _lists(values: list[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(row) for row in values], out=offsets[1:])
    flat = np.concatenate(values) if values else np.empty(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat).cast(kind))


def load(root: Path, h: Histories, history: int) -> Samples:
    """The samples dataset under `root` with the user states of its requests."""
    table = dataset.read(root / "samples", SAMPLES)
    index = {user_id: user for user, user_id in enumerate(h.user_ids)}
    users = np.array([index[user_id] for user_id in table.column("user_id").to_pylist()], np.int64)
    at = table.column("at").cast(pa.int64()).to_numpy().astype(np.int64)
    ends = h.offsets[users + 1] - 2
    states = [
        histories.state(h, user, end, history, now, h.contexts[end])
        for user, end, now in zip(users.tolist(), ends.tolist(), at.tolist(), strict=True)
    ]
    columns = [table.column(name).combine_chunks() for name in ("rows", "scores", "sources", "cooccurrence")]
    offsets = columns[0].offsets.to_numpy()
    rows, scores, sources, together = (column.flatten().to_numpy() for column in columns)
    parts = [slice(start, stop) for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    found = [
        Candidates(rows[part].astype(np.int64), scores[part], sources[part].astype(np.int64), together[part])
        for part in parts
    ]
    return Samples(users, states, found, at, table.column("label").to_numpy().astype(np.int64))
