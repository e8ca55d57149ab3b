"""What the ranker's features know of each item, of the profile columns, and of the training period.

Built once by the ranker's training job and saved as the `features` artifact (safetensors + JSON). The item
vectors are not part of the folder: the user tower and the bundle hold them, and `load` takes them.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rec import artifact, weights
from rec.artifact import Manifest, write_json
from rec.errors import ArtifactError
from rec.features import spec
from rec.features.spec import Spec
from rec.histories import profile_statistics
from rec.vocab.re import UNKNOWN_ID

KIND = "features"
VERSION = 2
NO_BRAND, OTHER_BRAND = 0, 1
MIN_BRAND_ITEMS = 2
"""A brand with fewer products shares the row OTHER_BRAND: it would be an id of the product."""
MAX_MEASUREMENTS = 6
"""Garment measurements in use: those most products have."""
MIN_MEASURED = 5
"""Measured products of a category below which its statistics are those of the whole catalogue."""

_ARRAYS = (
    "std", "unknown", "re", "re_weight", "brand", "group", "log_price", "created_us", "popularity", "measures",
    "profile_mean", "profile_std",
)  # fmt: skip


class Vocabulary(Protocol):
    """What is needed of the STD vocabulary."""

    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def num_ids(self) -> int: ...
    def key_id(self, key: str) -> int: ...
    def unknown_id(self, key: str) -> int: ...


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """Arrays of N rows in item-row order, and the statistics that turn raw values into features."""

    spec: Spec
    keys: tuple[str, ...]
    """The S STD keys, in column order of `std`."""
    profile_names: tuple[str, ...]
    measurements: tuple[str, ...]
    history: int
    """Last n events that features read."""
    std: NDArray[np.int32]
    """int32[N, S] id of the item's first value of each key, the key's unknown id where it has none."""
    unknown: NDArray[np.int32]
    """int32[S] unknown id of each key."""
    re: NDArray[np.int32]
    """int32[N, R] distinct RE tokens in the tensors' order, 0-padded."""
    re_weight: NDArray[np.float32]
    """float32[N, R] inverse document frequency of each token, unit L2 norm per row; 0 at padding."""
    brand: NDArray[np.int32]
    """int32[N] row of the brand table."""
    group: NDArray[np.int32]
    """int32[N] content group."""
    log_price: NDArray[np.float32]
    """float32[N] log(1 + price), nan where unknown."""
    created_us: NDArray[np.int64]
    """int64[N] UTC microseconds, -1 where unknown."""
    popularity: NDArray[np.int32]
    """int32[N] all events that train the user tower: never a held-out event. What a request of today sees."""
    measures: NDArray[np.float32]
    """float32[N, M] garment measurements as z-scores within the category, nan where unknown."""
    profile_mean: NDArray[np.float32]
    """float32[P] over users who have the column."""
    profile_std: NDArray[np.float32]
    """float32[P], 1 where a column never varies."""
    vectors: NDArray[np.float32]
    """float32[N, d] unit item vectors as the index holds them."""

    def save(self, folder: Path) -> None:
        """Write features.safetensors and features.json into `folder`."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        save_file(arrays, folder / "features.safetensors")
        described: dict[str, Any] = {
            "spec": self.spec.to_json(),
            "keys": list(self.keys),
            "profile_names": list(self.profile_names),
            "measurements": list(self.measurements),
            "history": self.history,
        }
        write_json(folder / "features.json", described)


def manifest(folder: Path) -> Manifest:
    """The checked manifest of the `features` artifact."""
    return artifact.read(folder, kind=KIND, version=VERSION, made_by="python jobs/train_ranker.py")


def load(folder: Path, vectors: NDArray[np.float32]) -> ItemFeatures:
    """Read what `ItemFeatures.save` wrote; `vectors` float32[N, d] are the user tower's item vectors.

    Raises ArtifactError when the saved fields are not those that this program computes, ValueError when there
    are not as many vectors as items.
    """
    described = json.loads((folder / "features.json").read_text(encoding="utf-8"))
    with weights.reading(folder / "features.safetensors") as path:
        arrays = load_file(path)
    if len(vectors) != len(arrays["std"]):
        raise ValueError(f"{len(vectors)} item vectors for the features of {len(arrays['std'])} items in {folder}")
    saved = Spec.from_json(described["spec"])
    if difference := saved.difference(_computed(saved, described)):
        raise ArtifactError(
            f"the features in {folder} are not those that this program computes: {difference} (first: saved, second: "
            "program); run `python jobs/train_ranker.py`"
        )
    return ItemFeatures(
        spec=saved,
        keys=tuple(described["keys"]),
        profile_names=tuple(described["profile_names"]),
        measurements=tuple(described["measurements"]),
        history=int(described["history"]),
        vectors=vectors,
        **arrays,
    )


def _computed(saved: Spec, described: dict[str, Any]) -> Spec:
    """The Spec that this program gives a catalogue like the saved one."""
    profile = described["profile_names"]
    return spec.build(
        std_keys=described["keys"],
        std_rows=saved.tables.get("std", 0),
        re_rows=saved.tables.get("re", 0),
        brand_rows=saved.tables.get("brand", 0),
        re_length=max((field.length for field in saved.varlen), default=0),
        # A recipe that denies the towers the profile denies it to the ranker: then no field of it is there.
        profile=profile if any(f"profile_{name}" in saved.dense for name in profile) else (),
        measurements=described["measurements"],
    )


def build(
    products: pa.Table,
    tensors: pa.Table,
    vocabulary: Vocabulary,
    *,
    re_rows: int,
    re_length: int,
    history: int,
    popularity: NDArray[np.int64],
    profiles: NDArray[np.float32],
    profile_names: Sequence[str],
    inputs: Collection[str],
    vectors: NDArray[np.float32],
) -> ItemFeatures:
    """ItemFeatures of the datasets `products` and `tensors`, both in item-row order.

    `re_rows` is the size of the RE id space, `re_length` the RE tokens kept per item, `popularity` int64[N]
    the events per item of the training period, `profiles` float32[U, P] raw values with nan for missing.
    `inputs` are those of std, re, profile that the towers read: what a tower is denied is no feature either,
    so leaving an input out is an ablation of the whole chain.
    """
    std, unknown = first_ids(tensors, vocabulary)
    if "std" not in inputs:
        std = np.tile(unknown, (len(std), 1))
    re = tokens(tensors.column("re_id"), re_length) if "re" in inputs else np.zeros((len(std), re_length), np.int32)
    brand, brand_rows = _brands(products.column("brand"))
    maps = [dict(pairs or ()) for pairs in products.column("measurements").to_pylist()]
    measurements = _measurements(maps)
    mean, deviation = profile_statistics(profiles)
    fields = spec.build(
        std_keys=vocabulary.keys,
        std_rows=vocabulary.num_ids,
        re_rows=re_rows,
        brand_rows=brand_rows,
        re_length=re_length,
        profile=profile_names if "profile" in inputs else (),
        measurements=measurements,
    )
    return ItemFeatures(
        spec=fields,
        keys=tuple(vocabulary.keys),
        profile_names=tuple(profile_names),
        measurements=measurements,
        history=history,
        std=std,
        unknown=unknown,
        re=re,
        re_weight=inverse_frequency(re, re, re_rows),
        brand=brand,
        group=tensors.column("group").to_numpy().astype(np.int32),
        log_price=log_prices(products.column("price")),
        created_us=created_us(products.column("created_at")),
        popularity=popularity.astype(np.int32),
        measures=z_scores(maps, measurements, categories(std, vocabulary.keys)),
        profile_mean=mean.astype(np.float32),
        profile_std=deviation.astype(np.float32),
        vectors=vectors,
    )


def _lists(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and value of every element of a list column, in order."""
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    return np.repeat(np.arange(len(lengths)), lengths), pc.list_flatten(column).to_numpy().astype(np.int64)


def first_ids(tensors: pa.Table, vocabulary: Vocabulary) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """int32[N, S] first id per key, and int32[S] unknown ids."""
    unknown = np.array([vocabulary.unknown_id(key) for key in vocabulary.keys], np.int32)
    column_of = np.full(1 + max(vocabulary.key_id(key) for key in vocabulary.keys), -1, np.int64)
    for column, key in enumerate(vocabulary.keys):
        column_of[vocabulary.key_id(key)] = column
    std = np.tile(unknown, (tensors.num_rows, 1))
    rows, key_ids = _lists(tensors.column("std_key"))
    ids = _lists(tensors.column("std_id"))[1]
    std[rows[::-1], column_of[key_ids[::-1]]] = ids[::-1]  # reversed: the first value of a key is written last
    return std, unknown


def tokens(column: pa.ChunkedArray, length: int) -> NDArray[np.int32]:
    """int32[N, length] the first distinct known tokens of each row, 0-padded."""
    rows, values = _lists(column)
    keep = values > UNKNOWN_ID
    rows, values = rows[keep], values[keep]
    pair = rows * (int(values.max(initial=0)) + 1) + values
    first = np.zeros(len(pair), bool)
    first[np.unique(pair, return_index=True)[1]] = True
    rows, values = rows[first], values[first]
    counts = np.bincount(rows, minlength=len(column))
    position = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    tokens = np.zeros((len(column), length), np.int32)
    fits = position < length
    tokens[rows[fits], position[fits]] = values[fits]
    return tokens


def log_prices(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """float32[N] log(1 + price), nan where there is none above zero."""
    price = pc.fill_null(column.cast(pa.float32()), float("nan")).to_numpy()
    return np.log1p(np.where(price > 0, price, np.nan)).astype(np.float32)


def created_us(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """int64[N] UTC microseconds, -1 where unknown."""
    return pc.fill_null(column.cast(pa.int64()), -1).to_numpy().astype(np.int64)


def inverse_frequency(re: NDArray[np.int32], among: NDArray[np.int32], re_rows: int) -> NDArray[np.float32]:
    """float32[N, R] idf of each token of `re` among the products `among` int32[M, R], rows of unit norm."""
    frequency = np.bincount(among.ravel(), minlength=re_rows).astype(np.float64)
    weight = np.log((1 + len(among)) / (1 + frequency))
    weight[0] = 0
    weights = weight[re]
    norm = np.linalg.norm(weights, axis=1, keepdims=True)
    return (weights / np.where(norm > 0, norm, 1)).astype(np.float32)


def _brands(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], int]:
    """int32[N] brand ids and the number of table rows; frequent brands first, ties by name."""
    names = column.to_pylist()
    counts = Counter(name for name in names if name)
    kept = sorted((name for name, n in counts.items() if n >= MIN_BRAND_ITEMS), key=lambda name: (-counts[name], name))
    ids = {name: 2 + i for i, name in enumerate(kept)}
    rows = [ids.get(name, OTHER_BRAND) if name else NO_BRAND for name in names]
    return np.array(rows, np.int32), 2 + len(kept)


def _measurements(maps: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Names of the garment measurements in use, those that most of the products have."""
    counts = Counter(name for values in maps for name in values)
    enough = max(2 * MIN_MEASURED, len(maps) // 100)
    kept = sorted((name for name, n in counts.items() if n >= enough), key=lambda name: (-counts[name], name))
    return tuple(kept[:MAX_MEASUREMENTS])


def categories(std: NDArray[np.int32], keys: Sequence[str]) -> NDArray[np.int32]:
    """int32[N] what garments are compared within, of their first ids `std` int32[N, S]."""
    return std[:, list(keys).index("category")] if "category" in keys else std[:, 0]


def z_scores(
    maps: Sequence[Mapping[str, float]], names: Sequence[str], category: NDArray[np.int32]
) -> NDArray[np.float32]:
    """float32[N, M] the measurements `names` of N products as z-scores within the category, nan where unknown."""
    measures = np.full((len(maps), len(names)), np.nan, np.float32)
    for m, name in enumerate(names):
        raw = np.array([values.get(name, np.nan) for values in maps], np.float64)
        known = np.isfinite(raw) & (raw > 0)  # 0.0 is how some shops write "missing"
        if known.any():
            measures[known, m] = _standardised(raw[known], category[known])
    return measures


def _standardised(values: NDArray[np.float64], category: NDArray[np.int32]) -> NDArray[np.float32]:
    """z-scores within each category, within all of them where a category has too few values."""
    _, index, counts = np.unique(category, return_inverse=True, return_counts=True)
    mean = np.bincount(index, values) / counts
    variance = np.bincount(index, (values - mean[index]) ** 2) / counts
    few = (counts < MIN_MEASURED) | (variance < 1e-6)
    mean[few], variance[few] = values.mean(), max(float(values.var()), 1e-6)
    return ((values - mean[index]) / np.sqrt(variance[index])).astype(np.float32)
