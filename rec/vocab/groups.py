"""Content groups: products that must not be each other's negatives.

Two products are of one group when the shop says so or when their titles and attributes have the same words, order
aside. Near enough to what the item tower sees: it cuts long texts, knows no seldom word, and may read descriptions,
which would tell listings of one product apart. What hangs together over several such steps is one group: a product
listed again under another style joins the styles.
"""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from rec.vocab.counting import Files, Pair, pairs_of
from rec.vocab.re import split_words


def keys(batch: pa.Table, files: Files) -> pa.Table:
    """Keys `shop` (null where the shop gives no group) and `content` of the row groups whose numbers are in `id`."""
    shops: list[bytes | None] = []
    contents: list[bytes] = []
    for group in batch.column("id").to_pylist():
        attributes, texts = files.attributes(group), files.texts(group)
        shops += [None if name is None else shop_key(name) for name in texts.column("group_id").to_pylist()]
        seen = (texts.column("title").to_pylist(), *(pairs_of(attributes.column(name)) for name in ("std", "re")))
        contents += [content_key(*parts) for parts in zip(*seen, strict=True)]
    return pa.table({"shop": pa.array(shops, pa.binary()), "content": pa.array(contents, pa.binary())})


def shop_key(name: str) -> bytes:
    """Digest of a group that the shop names."""
    return _digest("shop", name)


def content_key(title: str, std: list[Pair], re: list[Pair]) -> bytes:
    """Digest of the words of a product's title and attributes."""
    words = sorted({(key, word) for key, value in re for word in split_words(value)})
    return _digest("content", split_words(title), sorted(set(std)), words)


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


def number(tables: Iterable[pa.Table]) -> np.ndarray:
    """int32[products], group numbers in order of first appearance, of tables of `keys` in product order."""
    parents: list[int] = []  # of each key met: another key of the same group, or itself
    numbers: dict[bytes, int] = {}
    rows: list[int] = []

    def root(key: bytes) -> int:
        at = numbers.setdefault(key, len(parents))
        if at == len(parents):
            parents.append(at)
        return _root(parents, at)

    for table in tables:
        for shop, content in zip(table["shop"].to_pylist(), table["content"].to_pylist(), strict=True):
            at = root(content)
            if shop is not None and (other := root(shop)) != at:
                parents[max(at, other)] = min(at, other)
            rows.append(at)
    dense: dict[int, int] = {}
    return np.array([dense.setdefault(_root(parents, at), len(dense)) for at in rows], np.int32)


def _root(parents: list[int], at: int) -> int:
    """The key that stands for the group of `at`; halves the way to it for the next time."""
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at
