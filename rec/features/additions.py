"""Features of products that come after a ranker was trained, under the ids and statistics that it knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec.features.items import NO_BRAND, OTHER_BRAND, ItemFeatures, Vocabulary, first_ids, standardised, tokens


@dataclass(frozen=True, slots=True)
class Added:
    """m products as the datasets `products` and `tensors` have them, in the same order."""

    products: pa.Table
    tensors: pa.Table
    groups: NDArray[np.int32]
    """int32[m] content groups."""
    vectors: NDArray[np.float32]
    """float32[m, d] unit item vectors."""


def extended(
    base: ItemFeatures,
    added: Added,
    vocabulary: Vocabulary,
    brands: Sequence[str | None],
    measured: Sequence[dict[str, float]],
) -> ItemFeatures:
    """`base` of N products and after them those `added`, which nobody has chosen yet.

    `brands` and `measured` are the names of the N products' brands and their raw measurements: a brand that is not
    among them is one of the rare, and a measurement is a z-score among all products of its category.
    """
    std, _ = first_ids(added.tensors, vocabulary)
    if (base.std == base.unknown).all():  # the towers are denied them
        std = np.tile(base.unknown, (len(std), 1))
    re, length = np.zeros((len(std), base.re.shape[1]), np.int32), base.re.shape[1]
    if base.re.any():
        re = tokens(added.tensors["re_id"], length)
    price = pc.fill_null(added.products["price"].cast(pa.float32()), float("nan")).to_numpy()
    created = pc.fill_null(added.products["created_at"].cast(pa.int64()), -1).to_numpy().astype(np.int64)
    rows = {
        "std": std,
        "re": re,
        "re_weight": _weights(base, re),
        "brand": _brands(base, added.products["brand"].to_pylist(), brands),
        "group": added.groups,
        "log_price": np.log1p(np.where(price > 0, price, np.nan)).astype(np.float32),
        "created_us": created,
        "popularity": np.zeros(len(std), np.int32),
        "measures": _measures(base, added.products["measurements"], std, measured),
        "vectors": added.vectors,
    }
    joined: dict[str, Any] = {name: np.concatenate([getattr(base, name), new]) for name, new in rows.items()}
    return replace(base, **joined)


def _weights(base: ItemFeatures, re: NDArray[np.int32]) -> NDArray[np.float32]:
    """float32[m, R] inverse document frequency among the products of `base`, unit L2 norm per row."""
    frequency = np.bincount(base.re.ravel(), minlength=int(re.max(initial=0)) + 1)
    weight = np.log((1 + len(base.re)) / (1 + frequency))
    weight[0] = 0
    found = weight[re]
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    return (found / np.where(norm > 0, norm, 1)).astype(np.float32)


def _brands(base: ItemFeatures, new: Sequence[str | None], names: Sequence[str | None]) -> NDArray[np.int32]:
    known = {name: brand for name, brand in zip(names, base.brand.tolist(), strict=True) if name}
    return np.array([known.get(name, OTHER_BRAND) if name else NO_BRAND for name in new], np.int32)


def _measures(
    base: ItemFeatures, column: pa.ChunkedArray, std: NDArray[np.int32], measured: Sequence[dict[str, float]]
) -> NDArray[np.float32]:
    """float32[m, M], nan where unknown."""
    kind = base.keys.index("category") if "category" in base.keys else 0
    category = np.concatenate([base.std[:, kind], std[:, kind]])
    raw = [*measured, *(dict(pairs or ()) for pairs in column.to_pylist())]
    made = np.full((len(raw), len(base.measurements)), np.nan, np.float32)
    for m, name in enumerate(base.measurements):
        values = np.array([each.get(name, np.nan) for each in raw], np.float64)
        known = np.isfinite(values) & (values > 0)
        if known.any():
            made[known, m] = standardised(values[known], category[known])
    return made[len(measured) :]
