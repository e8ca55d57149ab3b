"""Stage `exposures`: lists that servers have shown, and what was chosen from them, as samples for the ranker.

A sample is a list of which a product was chosen: the chosen product against those that were shown and not chosen. A
list with two choices is two samples; in each the other choice is left out, as what is `unclear` is (attribution.py).
Candidates that were not shown are not known to be refused and have no part in it.

The state of the shopper, retrieval scores, sources and co-occurrence are those that were served: a later user tower has
learned from the events that followed, and its scores would know the answer. All other features are computed from these
as of the list's moment, by the code of the other samples (rec.features.compute). A candidate's rank and its distance to
the best one are those among all candidates, whether these are known or not.

Left out are lists that nobody was named for, of whom nothing is logged, lists whose window was still open when
yesterday (UTC) ended, lists without a user vector, whose candidates have no scores, and, of a user with a test event,
every choice from a minute before that event on: nothing is learned from the test. A list's user is who was shown it or,
as clients may sign in afterwards, did what follows from it; a list of several users is left out, too. Positions are
kept in the dataset and not used: lists are never shuffled, so how much of a choice is due to the position (Joachims,
Swaminathan & Schnabel 2017) cannot be told from how good the product is.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec import artifact, dataset, histories, postgres
from rec.config import Config
from rec.feedback import attribution
from rec.feedback.attribution import Followed
from rec.histories import Histories
from rec.index import exposures, live_events, migrations
from rec.index.exposures import Exposure
from rec.retrieval import Candidates
from rec.schema import EVENTS, EXPOSURES, INTERACTIONS, PRODUCTS, USERS
from rec.state import UserState

UNRANKED = "user_tower_unavailable"
"""The code of an answer whose candidates have no scores."""
BLOCK = 4_096
"""Samples of one batch of the dataset."""

Ints = NDArray[np.int64]
Choices = dict[int, dict[int, dict[str | None, int]]]
"""Row of a list → place that was chosen → user, None for clients → UTC microseconds of the first event."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lists:
    """S samples, as requests of the ranker."""

    users: Ints
    """int64[S] of `Histories`, -1 for somebody without events."""
    states: list[UserState]
    candidates: list[Candidates]
    """All that were retrieved; what is known of those that were not shown is how good the best one is."""
    kept: list[Ints]
    """The chosen product and those not chosen, as ascending positions among the candidates."""
    labels: Ints
    """int64[S] position of the chosen one among `kept`."""
    at: Ints
    """int64[S] UTC microseconds."""

    def where(self, mask: NDArray[np.bool_]) -> "Lists":
        """The samples of a mask bool[S]."""
        chosen = np.flatnonzero(mask).tolist()
        return Lists(
            users=self.users[mask],
            states=[self.states[at] for at in chosen],
            candidates=[self.candidates[at] for at in chosen],
            kept=[self.kept[at] for at in chosen],
            labels=self.labels[mask],
            at=self.at[mask],
        )


NOTHING = Lists(np.empty(0, np.int64), [], [], [], np.empty(0, np.int64), np.empty(0, np.int64))


def run(config: Config) -> dict[str, Any]:
    """Write the dataset `exposures`; returns its counts."""
    started, target = time.monotonic(), config.at(EXPOSURES.kind)
    window = timedelta(hours=config.feedback.window_hours)
    inputs = {
        "products": dataset.read_manifest(config.at("products"), PRODUCTS).content_hash,
        "users": dataset.read_manifest(config.at("users"), USERS).content_hash,
        "events": dataset.read_manifest(config.at("events"), INTERACTIONS).content_hash,
    }
    with postgres.session(postgres.url(config.store)) as connection:
        migrations.migrate(connection)
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        shown = exposures.shown(connection, config.name, until=today - window)
        since = shown.column("served_at")[0].as_py() if shown.num_rows else today
        told = live_events.following(connection, config.name, since, today)
        inputs |= {"lists": exposures.digest(shown), "live_events": exposures.digest(told, "event_id")}
        work: dict[str, Any] = {"inputs": inputs, "config": {"window_hours": config.feedback.window_hours}}
        done = artifact.finished(target, kind=EXPOSURES.kind, version=EXPOSURES.version, **work)
        if done is not None:
            return {"exposures": str(target), **done.facts, "skipped": True}
        facts: dict[str, Any] = {}
        made = _samples(partial(exposures.whole, connection), config, shown, told, facts)
        manifest = dataset.write(target, EXPOSURES, made, facts=facts, **work)
    return {"exposures": str(target), **manifest.facts, "seconds": round(time.monotonic() - started, 1)}


def _samples(
    whole: Callable[[list[str]], Iterator[Exposure]],
    config: Config,
    shown: pa.Table,
    told: pa.Table,
    facts: dict[str, Any],
) -> Iterator[pa.Table]:
    """Tables of the contract; fills `facts` at the end. `whole` reads lists by id."""
    h = histories.load(config.root)
    ids = dataset.read(config.at("products"), PRODUCTS, ["product_id"]).column("product_id").to_pylist()
    events = attribution.once(told, _of_log(h, ids, shown))
    followed = attribution.follow(shown, events, timedelta(hours=config.feedback.window_hours))
    choices = _choices(followed, events)
    maker = _Maker(h, {product_id: row for row, product_id in enumerate(ids)}, followed, choices)
    names = shown.column("exposure_id").to_pylist()
    row_of = {names[row]: row for row in choices}
    rows: list[dict[str, Any]] = []
    for exposure in whole(list(row_of)):
        rows += maker.samples(exposure, row_of[exposure.exposure_id])
        if len(rows) >= BLOCK:
            yield pa.Table.from_pylist(rows, EXPOSURES.schema)
            rows = []
    yield pa.Table.from_pylist(rows, EXPOSURES.schema)
    facts.update(lists=shown.num_rows, with_choice=len(choices), left_out=dict(sorted(maker.left_out.items())))
    facts["position_of_choice"] = round(maker.mean_position, 3)


def _of_log(h: Histories, ids: list[str], shown: pa.Table) -> pa.Table:
    """The events of the dataset by users who were shown a list, since the first one, oldest first (FOLLOWING)."""
    kind = live_events.FOLLOWING
    users = set(shown.column("user_id").to_pylist())
    mine = np.array([user_id in users for user_id in h.user_ids], bool)
    first = shown.column("served_at").cast(pa.int64())[0].as_py() if shown.num_rows else 0
    user = np.repeat(np.arange(len(h.user_ids)), np.diff(h.offsets))
    where = np.flatnonzero(mine[user] & (h.at >= first))
    where = where[np.argsort(h.at[where], kind="stable")]
    nothing = pa.nulls(len(where), pa.string())
    columns = {
        "event_id": nothing,
        "user_id": pa.array([h.user_ids[at] for at in user[where].tolist()], pa.string()),
        "client_id": nothing,
        "product_id": pa.array([ids[row] for row in h.items[where].tolist()], pa.string()),
        "event": pa.array([EVENTS[event - 1] for event in h.events[where].tolist()], pa.string()),
        "at": pa.array(h.at[where], kind.field("at").type),
        "exposure_id": nothing,
    }
    return pa.table(columns, schema=kind)


def _choices(followed: Followed, events: pa.Table) -> Choices:
    """The choices from lists, in the order of these."""
    at = events.column("at").cast(pa.int64()).to_numpy()
    users = events.column("user_id").to_pylist()
    found: Choices = {}
    columns = (followed.lists.tolist(), followed.positions.tolist(), followed.events.tolist())
    for row, position, event in zip(*columns, strict=True):
        first = found.setdefault(row, {}).setdefault(position, {})
        first[users[event]] = min(first.get(users[event], int(at[event])), int(at[event]))
    return dict(sorted(found.items()))


class _Maker:
    """From an exposure to its samples."""

    def __init__(self, h: Histories, row_of: dict[str, int], followed: Followed, choices: Choices) -> None:
        self._row_of, self._unclear, self._choices = row_of, followed.unclear, choices
        self.left_out: Counter[str] = Counter()
        """Choices that are no samples, by reason."""
        self._position, self._made = 0, 0
        last = h.offsets[1:] - 1
        spare = live_events.SAME // timedelta(microseconds=1)
        self._test = {h.user_ids[user]: int(h.at[last[user]]) - spare for user in histories.leave_one_out(h).test_users}

    @property
    def mean_position(self) -> float:
        """Of the chosen products in their lists, from 1."""
        return self._position / max(self._made, 1)

    def samples(self, exposure: Exposure, row: int) -> Iterator[dict[str, Any]]:
        """A row of the contract for each choice from the list at `row`."""
        choices = self._choices[row]
        order = np.argsort(exposure.places, kind="stable")
        known = [at for at in order.tolist() if exposure.products[at] in self._row_of]
        not_chosen = [at for at in known if at not in choices and (row, at) not in self._unclear]
        users = {exposure.user_id, *(user_id for first in choices.values() for user_id in first)} - {None}
        user_id = next(iter(users), None)
        for position, first in sorted(choices.items()):
            if UNRANKED in exposure.degraded:
                self.left_out["unranked"] += 1
            elif exposure.user_id is None and exposure.client_id is None:
                self.left_out["nobody_named"] += 1  # what was known of them is not logged
            elif len(users) > 1:
                self.left_out["several_users"] += 1
            elif user_id in self._test and max(first.values()) >= self._test[user_id]:
                self.left_out["test"] += 1
            elif position not in known:
                self.left_out["unknown_product"] += 1
            elif not not_chosen:
                self.left_out["nothing_else_shown"] += 1
            else:
                self._position += position + 1
                self._made += 1
                kept = [at for at in known if at == position or at in not_chosen]
                yield self._row(exposure, user_id, kept, kept.index(position))

    def _row(self, exposure: Exposure, user_id: str | None, kept: list[int], label: int) -> dict[str, Any]:
        past = [at for at, name in enumerate(exposure.history) if name in self._row_of]
        best = np.concatenate([exposure.candidate_scores, exposure.retrieval_scores]).max()
        return {
            "exposure_id": exposure.exposure_id,
            "user_id": user_id,
            "at": exposure.at,
            "label": label,
            "rows": [self._row_of[exposure.products[at]] for at in kept],
            "positions": [at + 1 for at in kept],
            "places": exposure.places[kept].tolist(),
            "scores": exposure.retrieval_scores[kept].tolist(),
            "sources": exposure.sources[kept].tolist(),
            "cooccurrence": exposure.cooccurrence[kept].tolist(),
            "retrieved": exposure.retrieved,
            "best": float(best),
            "history": [self._row_of[exposure.history[at]] for at in past],
            "history_events": exposure.history_events[past].tolist(),
            "history_ages": exposure.history_ages[past].tolist(),
            "context": exposure.context,
            "profile": list(exposure.profile.items()),
        }


def load(folder: Path, h: Histories) -> Lists:
    """The dataset at `folder` as requests."""
    index = {user_id: user for user, user_id in enumerate(h.user_ids)}
    table = dataset.read(folder, EXPOSURES)
    rows = table.to_pylist()
    return Lists(
        users=np.array([index.get(row["user_id"], -1) for row in rows], np.int64),
        states=[_state(row, h.profile_names) for row in rows],
        candidates=[_candidates(row) for row in rows],
        kept=[np.array(row["places"], np.int64) for row in rows],
        labels=np.array([row["label"] for row in rows], np.int64),
        at=table.column("at").cast(pa.int64()).to_numpy().astype(np.int64),
    )


def _state(row: dict[str, Any], profile_names: list[str]) -> UserState:
    profile = dict(row["profile"])
    return UserState(
        items=np.array(row["history"], np.int64),
        events=np.array(row["history_events"], np.int64),
        ages_s=np.array(row["history_ages"], np.float32),
        context=row["context"],
        profile=np.array([profile.get(name, np.nan) for name in profile_names], np.float32),
    )


def _candidates(row: dict[str, Any]) -> Candidates:
    """As many as there were; those that were not shown are any item with the best score."""
    count, places = row["retrieved"], np.array(row["places"], np.int64)
    found = Candidates(
        rows=np.zeros(count, np.int64),
        scores=np.full(count, row["best"], np.float32),
        sources=np.zeros(count, np.int64),
        cooccurrence=np.zeros(count, np.float32),
    )
    for name in ("rows", "scores", "sources", "cooccurrence"):
        getattr(found, name)[places] = row[name]
    return found
