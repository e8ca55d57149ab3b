"""Features of (user, candidates, time): the one implementation that training, evaluation and serving call.

A request is one user state with its candidates. Training computes many requests at once and serving those that came
together, by the same function, so a served feature is the trained feature. Histories are padded to a fixed length, and
every sum runs over that length, so a request's numbers do not depend on the requests beside it.

Nothing looks past `now_us`: the state holds earlier events, popularity counts training events before it, and
an item's age is taken at it. For a request of today popularity is that of all training events
(`ItemFeatures.popularity`); for a request of the past it is asked of `PastPopularity`, which gives the same
number for any moment after the last event.

B requests, K candidates (of the longest list), H history positions, S STD keys, R RE tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rec.features.items import ItemFeatures
from rec.features.popularity import PastPopularity
from rec.features.spec import user_keys
from rec.retrieval import Candidates
from rec.schema import EVENTS
from rec.state import UserState

Floats = NDArray[np.float32]

PART = 64
"""Candidates whose vectors are multiplied at once."""
BOUGHT = tuple(1 + EVENTS.index(name) for name in ("purchase", "rental"))
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class RankInputs:
    """What the ranker scores: one row per candidate, columns as `Spec` lists them."""

    sparse: NDArray[np.int64]
    """int64[K, F]"""
    varlen: NDArray[np.int64]
    """int64[K, R] 0-padded"""
    dense: Floats
    """float32[K, G] raw values, all finite; the model normalises."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Requests padded to rectangles."""

    rows: NDArray[np.int64]  # int64[B, K] item rows, 0 at padding
    real: NDArray[np.bool_]  # bool[B, K]
    scores: Floats  # float32[B, K]
    sources: NDArray[np.int64]  # int64[B, K]
    cooccurrence: Floats  # float32[B, K]
    past: NDArray[np.int64]  # int64[B, H] item rows, newest first, 0 at padding
    known: NDArray[np.bool_]  # bool[B, H]
    events: NDArray[np.int64]  # int64[B, H]
    ages_s: Floats  # float32[B, H]
    profile: Floats  # float32[B, P] nan where missing
    now_us: NDArray[np.int64]  # int64[B]

    @property
    def length(self) -> Floats:
        """float32[B] events in the history, at least 1 so that it can divide."""
        return np.maximum(self.known.sum(axis=1), 1).astype(np.float32)


def compute_batch(
    items: ItemFeatures,
    states: Sequence[UserState],
    candidates: Sequence[Candidates],
    now_us: NDArray[np.int64],
    past: PastPopularity | None = None,
) -> RankInputs:
    """Features of B requests: the rows of the first request, then those of the second, and so on.

    `past` gives the popularity at each request's time; None is for requests after the last event.
    """
    batch = _pad(items, states, candidates, now_us)
    sparse = _sparse(items, batch)  # int64[B, K, F]
    columns = {**_profile(items, batch), **_user(batch), **_item(items, batch, past), **_retrieval(batch)}
    columns.update(_shares(items, batch))
    columns.update(_similarity(items, batch))
    columns.update(_garment_fit(items, batch))
    dense = np.empty((*batch.rows.shape, len(items.spec.dense)), np.float32)
    for g, name in enumerate(items.spec.dense):
        dense[..., g] = columns[name]
    return RankInputs(
        sparse=sparse[batch.real], varlen=items.re[batch.rows[batch.real]].astype(np.int64), dense=dense[batch.real]
    )


def _pad(
    items: ItemFeatures, states: Sequence[UserState], candidates: Sequence[Candidates], now_us: NDArray[np.int64]
) -> _Batch:
    size, width, history = len(states), max((len(c.rows) for c in candidates), default=0), items.history
    rows, real = np.zeros((size, width), np.int64), np.zeros((size, width), bool)
    scores, sources = np.zeros((size, width), np.float32), np.zeros((size, width), np.int64)
    together = np.zeros((size, width), np.float32)
    past, known = np.zeros((size, history), np.int64), np.zeros((size, history), bool)
    events, ages = np.zeros((size, history), np.int64), np.zeros((size, history), np.float32)
    profile = np.full((size, len(items.profile_names)), np.nan, np.float32)
    for b, (state, found) in enumerate(zip(states, candidates, strict=True)):
        count = len(found.rows)
        rows[b, :count], real[b, :count] = found.rows, True
        scores[b, :count], sources[b, :count] = found.scores, found.sources
        together[b, :count] = found.cooccurrence
        length = min(len(state.items), history)
        newest = slice(len(state.items) - length, len(state.items))
        past[b, :length], known[b, :length] = state.items[newest][::-1], True
        events[b, :length], ages[b, :length] = state.events[newest][::-1], state.ages_s[newest][::-1]
        profile[b] = state.profile
    return _Batch(rows, real, scores, sources, together, past, known, events, ages, profile, now_us)


def _sparse(items: ItemFeatures, batch: _Batch) -> NDArray[np.int64]:
    """int64[B, K, F] in the order of spec.sparse."""
    columns: dict[str, NDArray[np.integer]] = {}
    for s, key in enumerate(items.keys):
        columns[f"item_{key}"] = items.std[batch.rows, s]
    for key in user_keys(items.keys):
        s = items.keys.index(key)
        ids = items.std[batch.past, s]
        columns[f"user_{key}"] = _most_frequent(ids, batch.known & (ids != items.unknown[s]), int(items.unknown[s]))
    brands = items.brand[batch.past]
    columns["item_brand"] = items.brand[batch.rows]
    columns["user_brand"] = _most_frequent(brands, batch.known & (brands > 0), 0)
    columns["source"] = batch.sources
    return np.stack(
        [np.broadcast_to(columns[field.name], batch.rows.shape).astype(np.int64) for field in items.spec.sparse],
        axis=-1,
    )


def _most_frequent(ids: NDArray[np.int32], valid: NDArray[np.bool_], none: int) -> NDArray[np.int64]:
    """int64[B, 1] the most frequent valid id of each row, the newest of equals, `none` without any."""
    counts = ((ids[:, :, None] == ids[:, None, :]) & valid[:, None, :]).sum(axis=2) * valid  # [B, H]
    best = counts.argmax(axis=1)  # the first of equals: positions run from the newest
    found = ids[np.arange(len(ids)), best]
    return np.where(valid.any(axis=1), found, none).astype(np.int64)[:, None]


def _profile(items: ItemFeatures, batch: _Batch) -> Mapping[str, Floats]:
    """z-scored profile values (0 where missing) and missing flags."""
    columns = {}
    z = _z_profile(items, batch)
    for p, name in enumerate(items.profile_names):
        missing = ~np.isfinite(z[:, p])
        columns[f"profile_{name}"] = np.where(missing, 0, z[:, p])[:, None]
        columns[f"profile_{name}_missing"] = missing.astype(np.float32)[:, None]
    return columns


def _z_profile(items: ItemFeatures, batch: _Batch) -> Floats:
    return (batch.profile - items.profile_mean) / items.profile_std  # float32[B, P] nan where missing


def _user(batch: _Batch) -> Mapping[str, Floats]:
    ages = np.log1p(batch.ages_s / DAY_S) * batch.known
    bought = np.isin(batch.events, BOUGHT) & batch.known
    return {
        "history_length": np.log1p(batch.known.sum(axis=1, dtype=np.float32))[:, None],
        "history_recency": (ages.sum(axis=1) / batch.length)[:, None],
        "history_last_age": ages[:, :1],
        "history_bought": (bought.sum(axis=1) / batch.length)[:, None],
    }


def _item(items: ItemFeatures, batch: _Batch, past: PastPopularity | None) -> Mapping[str, Floats]:
    price = items.log_price[batch.rows]
    created = items.created_us[batch.rows]
    chosen = items.popularity[batch.rows] if past is None else past.before(batch.rows, batch.now_us[:, None])
    age_days = np.maximum(batch.now_us[:, None] - created, 0) / (DAY_S * 1e6)
    return {
        "log_price": np.nan_to_num(price),
        "price_missing": np.isnan(price).astype(np.float32),
        "log_age": np.where(created >= 0, np.log1p(age_days), 0).astype(np.float32),
        "age_missing": (created < 0).astype(np.float32),
        "log_popularity": np.log1p(chosen.astype(np.float32)),
    }


def _retrieval(batch: _Batch) -> Mapping[str, Floats]:
    best = np.where(batch.real, batch.scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    rank = np.arange(batch.rows.shape[1], dtype=np.float32)
    return {
        "score": batch.scores,
        "score_gap": np.where(batch.real, batch.scores - best, 0).astype(np.float32),
        "log_rank": np.log1p(rank)[None, :],
        "cooccurrence": batch.cooccurrence,
    }


def _shares(items: ItemFeatures, batch: _Batch) -> Mapping[str, Floats]:
    """How often the history has the candidate's own value: of each STD key, brand, content group, item."""
    length = batch.length[:, None]
    columns: dict[str, Floats] = {}
    for s, key in enumerate(items.keys):
        same = _same(items.std[:, s], batch) & (items.std[batch.rows, s] != items.unknown[s])[:, :, None]
        columns[f"share_{key}"] = (same.sum(axis=2) / length).astype(np.float32)
        columns[f"last_{key}"] = same[:, :, 0].astype(np.float32)
    brand = _same(items.brand, batch) & (items.brand[batch.rows] > 0)[:, :, None]
    seen = ((batch.rows[:, :, None] == batch.past[:, None, :]) & batch.known[:, None, :]).sum(axis=2)
    columns["same_brand"] = (brand.sum(axis=2) / length).astype(np.float32)
    columns["same_group"] = (_same(items.group, batch).sum(axis=2) / length).astype(np.float32)
    columns["seen"] = (seen > 0).astype(np.float32)
    columns["seen_count"] = np.log1p(seen.astype(np.float32))
    price, past = items.log_price[batch.rows], items.log_price[batch.past]
    gap = price - _known_mean(past, batch.known & np.isfinite(past))[:, None]
    columns["price_gap"] = np.nan_to_num(gap)
    columns["price_distance"] = np.abs(columns["price_gap"])
    return columns


def _same(ids: NDArray[np.int32], batch: _Batch) -> NDArray[np.bool_]:
    """bool[B, K, H] whether candidate and history item have the same id."""
    return (ids[batch.rows][:, :, None] == ids[batch.past][:, None, :]) & batch.known[:, None, :]


def _known_mean(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """float32[B] mean of the known values of each row, nan without any."""
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1, dtype=np.float32)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _similarity(items: ItemFeatures, batch: _Batch) -> Mapping[str, Floats]:
    """Cosines to the history's item vectors, and shared RE tokens weighted by rarity."""
    cosine = _cosines(items, batch)  # float32[B, K, H]
    known: NDArray[np.bool_] = batch.known[:, None, :]
    warm = batch.known.any(axis=1, keepdims=True)
    shared = _shared_tokens(items, batch)  # float32[B, K, R]
    return {
        "cosine_max": np.where(warm, np.where(known, cosine, -np.inf).max(axis=2, initial=-np.inf), 0).astype(
            np.float32
        ),
        "cosine_mean": np.where(known, cosine, 0).sum(axis=2) / batch.length[:, None],
        "cosine_last": np.where(warm, cosine[:, :, 0], 0),
        "re_match": shared.sum(axis=2),
        "re_match_max": shared.max(axis=2, initial=0),
    }


def _cosines(items: ItemFeatures, batch: _Batch) -> Floats:
    """float32[B, K, H] of candidates and history, by products of one shape.

    BLAS adds in an order that depends on the number of rows: with all candidates at once their last bits would be
    others beside a request with more.
    """
    size, width = batch.rows.shape
    parts = -(-width // PART)
    rows = np.pad(batch.rows, ((0, 0), (0, parts * PART - width))).reshape(size, parts, PART)
    cosine = items.vectors[rows] @ items.vectors[batch.past].transpose(0, 2, 1)[:, None]  # float32[B, parts, PART, H]
    return cosine.reshape(size, parts * PART, items.history)[:, :width]


def _shared_tokens(items: ItemFeatures, batch: _Batch) -> Floats:
    """float32[B, K, R] the part of each candidate token in the mean cosine of RE bags with the history."""
    size, width = len(batch.rows), items.spec.tables["re"]
    weight = items.re_weight[batch.past] * batch.known[:, :, None] / batch.length[:, None, None]  # [B, H, R]
    token = items.re[batch.past] + (np.arange(size) * width)[:, None, None]
    taste = np.bincount(token.ravel(), weight.ravel(), minlength=size * width).astype(np.float32)
    own = items.re[batch.rows] + (np.arange(size) * width)[:, None, None]  # [B, K, R]
    return taste[own] * items.re_weight[batch.rows]


def _garment_fit(items: ItemFeatures, batch: _Batch) -> Mapping[str, Floats]:
    """Garment measurements against the body and against what the user chose before, all z-scored."""
    columns: dict[str, Floats] = {}
    body = _z_profile(items, batch)
    for m, measurement in enumerate(items.measurements):
        measure = items.measures[batch.rows, m]  # float32[B, K]
        past = items.measures[batch.past, m]
        habit = _known_mean(past, batch.known & np.isfinite(past))[:, None]
        columns[f"measure_{measurement}"] = np.nan_to_num(measure)
        columns[f"measure_{measurement}_missing"] = np.isnan(measure).astype(np.float32)
        columns[f"habit_{measurement}_distance"] = np.nan_to_num(np.abs(measure - habit))
        for p, name in enumerate(items.profile_names):
            gap = np.nan_to_num(measure - body[:, p, None])
            columns[f"{name}_to_{measurement}"] = gap
            columns[f"{name}_to_{measurement}_distance"] = np.abs(gap)
    return columns
