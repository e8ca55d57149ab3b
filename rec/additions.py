"""A bundle that has more products than another one, by that one's own models: nothing is trained.

Files that are the same are links to the same bytes. The rows of the new products come after all others, so whatever
refers to an item row stays right, and the database keeps one table of vectors for both (`rec.index.load`).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch.nn import functional as F

from rec import artifact, assemble, bundle, dataset
from rec.bundle import FIT_HEAD, Bundle
from rec.config import Config
from rec.embed import Embed
from rec.errors import ArtifactError
from rec.features import additions as feature_additions
from rec.features import items as item_features
from rec.features.additions import Added
from rec.models import encoder_files, fit_head, item_tower, latent_semantics, text_encoder, user_tower
from rec.models.encoder_files import ENCODER_FILES
from rec.models.item_inputs import TEXT_STATES, check_texts
from rec.schema import PRODUCTS, TENSORS
from rec.sources import tables
from rec.vocab import groups
from rec.vocab.re import split_words
from rec.vocab.std import StdVocabulary

LIVE = ("price", "currency", "available", "group_id")
"""Columns of the display table that the shop's files have anew for all products."""

Ints = NDArray[np.int32]


def make(base: Bundle, new: Config, seen: pa.Table) -> Bundle:
    """The bundle of `base` and the products of the recipe `new`, which went through encode, in the same store.

    `seen` are all PRODUCTS that the shop has now: prices and stock, and what `base` does not say of its products.
    """
    return bundle.make(new.store, lambda staging: _fill(staging, base, new, seen))


def check(base: Bundle) -> None:
    """Raise ArtifactError where new products have no place in what `base` learned."""
    if not base.config.user_tower.content:
        raise ArtifactError(
            f"the user tower of bundle {base.id} knows products by their number alone (user_tower.content = false): "
            "train again for new ones"
        )
    version = base.said()["parts"]["item_tower"]
    if version != item_tower.VERSION:
        raise ArtifactError(
            f"bundle {base.id} has an item tower of version {version}, this program makes vectors by version "
            f"{item_tower.VERSION}: run `python jobs/pipeline.py --recipe {base.recipe}`"
        )
    text = base.config.text
    if now := text_encoder.files(text):  # a folder that is not here cannot be read either, which encode says
        encoder_files.check(
            f"bundle {base.id}",
            base.encoder_files,
            now[ENCODER_FILES],
            encoder=text.encoder,
            reader="the refresh",
            remedy=f"run `python jobs/pipeline.py --recipe {base.recipe}`, or put back the files that it was made with",
        )


def _fill(staging: Path, base: Bundle, new: Config, seen: pa.Table) -> dict[str, Any]:
    shown, display = base.products(), assemble.display(new)
    places = _places(shown, seen)
    vectors = np.concatenate([base.item_vectors(), _vectors(base, new)])
    added = len(vectors) - base.items

    def folder(part: str) -> Path:
        (staging / part).mkdir(exist_ok=True)
        return staging / part

    table = pa.concat_tables([_live(shown, seen, places), display])
    pq.write_table(table, staging / "products.parquet", compression="zstd")
    save_file({"item_vectors": vectors}, folder("user_tower") / "item_vectors.safetensors")
    _features(base, new, seen, places, shown, display, vectors).save(folder("features"))
    tables.load(base.folder("sources")).extended(vectors, added).save(folder("sources"))
    if base.has(FIT_HEAD):
        head, items = fit_head.load(base.folder(FIT_HEAD))
        fit_head.save(folder(FIT_HEAD), head, fit_head.extended(items, added))
    for name in base.files:
        if not (staging / name).exists():
            artifact.link(base.path / name, staging / name)
    said = base.said()
    products = dataset.read_manifest(new.at("products"), PRODUCTS).content_hash
    return {
        **said,
        "items": len(vectors),
        "extends": base.id,
        "root": base.root,
        "inputs": {**said["inputs"], "added": products},
    }


def _places(shown: pa.Table, seen: pa.Table) -> NDArray[np.int64]:
    """int64[N] row of each of the base's products in `seen`, -1 for one that the shop no longer has."""
    found = pc.index_in(shown["product_id"], seen["product_id"].combine_chunks())
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def _live(shown: pa.Table, seen: pa.Table, places: NDArray[np.int64]) -> pa.Table:
    """The display table with what is LIVE in `seen`; what is no longer there is not in stock."""
    there = pa.array(places >= 0)
    rows = pa.array(np.maximum(places, 0))
    for name in LIVE:
        at, before = shown.column_names.index(name), shown[name].combine_chunks()
        now = seen[name].combine_chunks().take(rows).cast(before.type)
        missing = pa.array(np.zeros(len(places), bool)) if name == "available" else before
        shown = shown.set_column(at, shown.schema.field(name), pc.if_else(there, now, missing))
    return shown


def _vectors(base: Bundle, new: Config) -> NDArray[np.float32]:
    """Unit vectors float32[m, d] of the new products, as the index holds them: none has what is learned per item."""
    folders = (base.folder("item_tower"), base.folder("vocabulary"), new.at("tensors"), new.at(TEXT_STATES))
    count = dataset.read_manifest(new.at("tensors"), TENSORS).facts["rows"]
    shape = item_tower.read_shape(base.folder("item_tower"))
    check_texts(
        new.at("tensors"),
        new.at(TEXT_STATES),
        encoder=shape.text_encoder,
        layers_above=shape.layers_above_states,
        reader=f"the item tower of bundle {base.id}",
        files=base.encoder_files,
    )
    embed = Embed(*folders, new.item_tower.train.model_copy(update={"use_gpu": False}))
    made = embed(pa.table({"block": [0], "rows": [np.arange(count)]}))["vectors"].combine_chunks()
    content = np.array(made.values).reshape(count, -1)
    tower = user_tower.load(base.folder("user_tower"))
    analysis = latent_semantics.load(base.folder("user_tower"))
    if analysis is not None:
        content = latent_semantics.beside(content, analysis(latent_semantics.counts(new.at("tensors"))))
    with torch.inference_mode():
        vectors: NDArray[np.float32] = F.normalize(tower.adapt(torch.from_numpy(content)), dim=-1).numpy()
    return vectors


def _features(
    base: Bundle,
    new: Config,
    seen: pa.Table,
    places: NDArray[np.int64],
    shown: pa.Table,
    display: pa.Table,
    vectors: NDArray[np.float32],
) -> item_features.ItemFeatures:
    old = item_features.load(base.folder("features"), vectors[: base.items])
    products, tensors = dataset.read(new.at("products"), PRODUCTS), dataset.read(new.at("tensors"), TENSORS)
    measurements = [dict(pairs or ()) for pairs in seen["measurements"].to_pylist()] if old.measurements else []
    shops = products["group_id"].to_pylist()
    added = Added(products, tensors, _groups(old.group, shown, seen, places, display, shops), vectors[base.items :])
    return feature_additions.extended(
        old,
        added,
        StdVocabulary.load(base.folder("vocabulary") / "std.toml"),
        shown["brand"].to_pylist(),
        [measurements[place] if place >= 0 and measurements else {} for place in places.tolist()],
    )


def _groups(
    old: Ints,
    shown: pa.Table,
    seen: pa.Table,
    places: NDArray[np.int64],
    display: pa.Table,
    shops: Sequence[str | None],
) -> Ints:
    """int32[m] content groups of the new products: that of an old one of the same content or the shop's own group, else
    new numbers.

    `display` and `shops` are what is shown of the new products and what groups the shop names for them.
    """
    shops_now = set(shops) - {None}
    titles = {tuple(split_words(title)) for title in display["title"].to_pylist()}
    named = seen["group_id"].to_pylist()
    shops_before = [named[place] if place >= 0 else None for place in places.tolist()]
    near = [
        row
        for row, (title, shop) in enumerate(zip(shown["title"].to_pylist(), shops_before, strict=True))
        if tuple(split_words(title)) in titles or shop in shops_now
    ]
    contents = [*_contents(shown.take(pa.array(near, pa.int64()))), *_contents(display)]
    keys = [None if shop is None else groups.shop_key(shop) for shop in [*(shops_before[row] for row in near), *shops]]
    numbers = groups.number(
        [pa.table({"shop": pa.array(keys, pa.binary()), "content": pa.array(contents, pa.binary())})]
    )
    known: dict[int, int] = {}
    for number, row in zip(numbers[: len(near)].tolist(), near, strict=True):
        known.setdefault(number, int(old[row]))
    following = itertools.count(int(old.max(initial=-1)) + 1)
    made = numbers[len(near) :].tolist()
    for number in dict.fromkeys(made):
        if number not in known:
            known[number] = next(following)
    return np.array([known[number] for number in made], np.int32)


def _contents(display: pa.Table) -> Iterable[bytes]:
    for row in display.select(["title", "std", "re"]).to_pylist():
        yield groups.content_key(row["title"], _pairs(row["std"]), _pairs(row["re"]))


def _pairs(attributes: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    return [(each["key"], each["value"]) for each in attributes]
