"""Latent semantic analysis of products: which STD, RE and title tokens they have, as a few numbers each.

    z = (x V - mean) scale

with x the unit-length tf-idf vector of a product, its counts sublinear, V the first k right singular vectors of all x
(Deerwester, Dumais, Furnas, Landauer, Harshman, "Indexing by Latent Semantic Analysis", 1990); by the scale the mean
square length is 1.

A text encoder says what a text means; which brand and which line a product is of, rare words, are blurred in it. Here
they are what counts most.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix

from rec import dataset
from rec.artifact import write_json
from rec.schema import TENSORS

COLUMNS = ("std_id", "re_id", "title_id")
MIN_PRODUCTS = 3
"""Products that must have a token for it to count."""
SAMPLE = 200_000
"""Products, evenly spread over the catalogue, that the analysis is made of."""
ITEM_WEIGHT = 0.5
"""What the item tower's unit vectors are multiplied with beside an analysis, whose mean square length is 1."""
BLOCK = 16_384
"""Products placed at once."""
FILE = "latent_semantics"

Floats = NDArray[np.float32]


class LatentSemantics:
    """An analysis that was made, ready to place products."""

    def __init__(self, tokens: NDArray[np.int64], idf: Floats, weight: Floats, centre: Floats) -> None:
        """`tokens` int64[V] ascending, their `idf` float32[V] and rows `weight` float32[V, k]; `centre` float32[k]."""
        self.tokens, self.idf, self.weight, self.centre = tokens, idf, weight, centre

    @classmethod
    def fit(cls, products: csr_matrix, width: int, seed: int) -> "LatentSemantics":
        """The analysis of `products` (see `counts`) in `width` components; those beyond what they have are zero."""
        from sklearn.decomposition import (
            TruncatedSVD,
        )  # a second, which workers and servers, who only place, do without
        from sklearn.feature_extraction.text import TfidfTransformer

        sample = products[np.unique(np.linspace(0, products.shape[0] - 1, min(SAMPLE, products.shape[0])).astype(int))]
        tokens = np.flatnonzero(np.diff(sample.tocsc().indptr) >= MIN_PRODUCTS)
        sample = sample[:, tokens]
        most = min(width, min(sample.shape) - 1)
        tfidf = TfidfTransformer(sublinear_tf=True)
        placed = np.zeros((1, 0))
        if most > 0:
            svd = TruncatedSVD(most, random_state=seed)
            placed = svd.fit_transform(tfidf.fit_transform(sample))  # float64[n, most]
        centre, deviation = placed.mean(axis=0), placed.std(axis=0)
        if not (deviation > 1e-6).any():  # nothing tells the products apart
            none = np.zeros(0, np.float32)
            return cls(np.zeros(0, np.int64), none, np.zeros((0, width), np.float32), np.zeros(width, np.float32))
        scale = 1 / np.sqrt((deviation**2).sum())
        weight = np.zeros((len(tokens), width), np.float32)
        weight[:, :most] = svd.components_.T * scale
        moved = np.zeros(width, np.float32)
        moved[:most] = centre * scale
        return cls(tokens, tfidf.idf_.astype(np.float32), weight, moved)

    def __call__(self, products: csr_matrix) -> Floats:
        """float32[N, k] of `products` (see `counts`); a product without a known token lies at minus the mean."""
        known = self.tokens[self.tokens < products.shape[1]]
        placed = np.empty((products.shape[0], self.weight.shape[1]), np.float32)
        for start in range(0, len(placed), BLOCK):
            part = products[start : start + BLOCK][:, known].astype(np.float32)
            part.data = 1 + np.log(part.data)
            part = part.multiply(self.idf[: len(known)]).tocsr()
            length = np.sqrt(np.asarray(part.multiply(part).sum(axis=1)))
            placed[start : start + BLOCK] = part @ self.weight[: len(known)] / np.maximum(length, 1e-12) - self.centre
        return placed

    def save(self, folder: Path) -> None:
        """Write latent_semantics.safetensors and .json into `folder`."""
        arrays = {"tokens": self.tokens, "idf": self.idf, "weight": self.weight, "centre": self.centre}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / f"{FILE}.safetensors")
        write_json(folder / f"{FILE}.json", {"columns": COLUMNS, "components": self.weight.shape[1]})


def load(folder: Path) -> LatentSemantics | None:
    """The analysis saved in `folder`; None where there is none."""
    if not (folder / f"{FILE}.safetensors").exists():
        return None
    described = json.loads((folder / f"{FILE}.json").read_text(encoding="utf-8"))
    assert described["columns"] == list(COLUMNS)
    return LatentSemantics(**load_file(folder / f"{FILE}.safetensors"))


def counts(tensors: Path) -> csr_matrix:
    """Sparse float32[N, T]: how often each product of a tensors dataset has each token.

    Token i of column c of COLUMNS has the number `i * len(COLUMNS) + c`, so new tokens move no old one.
    """
    table = dataset.read(tensors, TENSORS, list(COLUMNS))
    owners, tokens = [], []
    for place, name in enumerate(COLUMNS):
        column = table[name].combine_chunks()
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        owners.append(np.repeat(np.arange(len(column)), lengths))
        tokens.append(column.flatten().to_numpy(zero_copy_only=False).astype(np.int64) * len(COLUMNS) + place)
    rows, columns = np.concatenate(owners), np.concatenate(tokens)
    size = (table.num_rows, int(columns.max(initial=0)) + 1)
    found = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), size)
    found.sum_duplicates()
    return found


def beside(vectors: Floats, placed: Floats) -> Floats:
    """Content float32[N, d + k] of the item tower's unit vectors float32[N, d] and components float32[N, k]."""
    return np.concatenate([np.float32(ITEM_WEIGHT) * vectors, placed], axis=1)
