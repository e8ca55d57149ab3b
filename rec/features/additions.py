"""Features of products that come after a ranker was trained, under the ids and statistics that it knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec.features.items import (
    NO_BRAND,
    OTHER_BRAND,
    ItemFeatures,
    Vocabulary,
    categories,
    created_us,
    first_ids,
    inverse_frequency,
    log_prices,
    tokens,
    z_scores,
)


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
    re = np.zeros((len(std), base.re.shape[1]), np.int32)
    if base.re.any():
        re = tokens(added.tensors["re_id"], re.shape[1])
    kinds = np.concatenate([categories(base.std, base.keys), categories(std, base.keys)])
    maps = [*measured, *(dict(pairs or ()) for pairs in added.products["measurements"].to_pylist())]
    rows = {
        "std": std,
        "re": re,
        "re_weight": inverse_frequency(re, base.re, base.spec.tables["re"]),
        "brand": _brands(base, added.products["brand"].to_pylist(), brands),
        "group": added.groups,
        "log_price": log_prices(added.products["price"]),
        "created_us": created_us(added.products["created_at"]),
        "popularity": np.zeros(len(std), np.int32),
        "measures": z_scores(maps, base.measurements, kinds)[len(measured) :],
        "vectors": added.vectors,
    }
    joined: dict[str, Any] = {name: np.concatenate([getattr(base, name), new]) for name, new in rows.items()}
    return replace(base, **joined)


def _brands(base: ItemFeatures, new: Sequence[str | None], names: Sequence[str | None]) -> NDArray[np.int32]:
    known = {name: brand for name, brand in zip(names, base.brand.tolist(), strict=True) if name}
    return np.array([known.get(name, OTHER_BRAND) if name else NO_BRAND for name in new], np.int32)
