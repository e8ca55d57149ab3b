"""A small catalogue as the stages before encode leave it: vocabulary and tensors of invented garments."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rec import artifact, config, dataset
from rec.config import Config
from rec.models import text_encoder
from rec.models.item_inputs import TEXT_STATES, TEXT_STATES_VERSION
from rec.schema import INTERACTIONS, PRODUCTS, TENSORS, USERS, Contract
from rec.vocab import std, tensorize
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

KEYS = ("category", "colour", "season", "fibre")
WORDS = ("soft", "warm", "boxy", "ribbed", "cropped", "quilted", "sheer", "brushed", "washed", "crisp", "cosy")
RECIPE = """
name = "catalogue"
store = "{store}"
seed = 5

[text]
cpus_per_actor = 1

[item_tower]
width = 32
heads = 2
std_width = 8

[item_tower.train]
epochs = 30
batch_size = 32
cpus_per_worker = 1
learning_rate = 3e-3
"""
PEOPLE = ("for the office", "for a weekend away", "for long walks", "with deep pockets", "made to last")


def write(folder: Path, products: int, *, seed: int = 0, overrides: Sequence[str] = ()) -> Config:
    """Write `vocabulary` and `tensors` of `products` garments, and the recipe `folder`/catalogue.toml.

    One garment of eight has no STD, one no RE, one no title.
    """
    recipe = folder / "catalogue.toml"
    recipe.write_text(RECIPE.format(store=folder), encoding="utf-8")
    tree = config.load(str(recipe), overrides)
    vocabulary = StdVocabulary.load()
    tokens = ReVocabulary([], []).grow(dict.fromkeys(WORDS, 9), 1, vocabulary.keys)
    with artifact.write(
        tree.at("vocabulary"), kind=tensorize.KIND, version=tensorize.VERSION, inputs={}, config={"seed": seed}
    ) as draft:
        (draft.path / "std.toml").write_text(std.shipped(), encoding="utf-8")
        tokens.save(draft.path / "re.json")
    rows, _ = _rows(vocabulary, tokens, tree, products, seed)
    made_by = {"text": {"encoder": tree.text.encoder, **text_encoder.files(tree.text)}, "seed": seed}
    dataset.write(tree.at("tensors"), TENSORS, [rows], inputs={}, config=made_by)
    return tree


def shop(folder: Path, products: int, *, seed: int = 0) -> Config:
    """`write`, and products, users, events and text states: states at random, shoppers who stay with a colour."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = write(folder, products, seed=seed)
    rng = np.random.default_rng(seed + 1)
    tensors = dataset.read(tree.at("tensors"), TENSORS, ["product_id", "std_key", "std_id"]).to_pylist()
    key = StdVocabulary.load().key_id("colour")
    colours = [dict(zip(row["std_key"], row["std_id"], strict=True)).get(key, 0) for row in tensors]
    ids = np.array([row["product_id"] for row in tensors])
    events = []
    for user in range(4 * products):
        liked = np.flatnonzero(np.array(colours) == colours[user % products])
        for step, item in enumerate(rng.choice(liked, min(len(liked), 6), replace=False).tolist()):
            at = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=step)
            events.append({"user_id": f"u{user:04}", "product_id": ids[item], "event": "purchase", "at": at})
    vocabulary = StdVocabulary.load()
    _, titles = _rows(vocabulary, ReVocabulary.load(tree.at("vocabulary") / "re.json"), tree, products, seed)
    told = zip(ids, titles, strict=True)
    put(tree, PRODUCTS, [{"product_id": i, "title": title, "available": True} for i, title in told])
    put(tree, USERS, [{"user_id": f"u{user:04}"} for user in range(4 * products)])
    put(tree, INTERACTIONS, events)
    _states(tree, products, rng)
    return tree


def put(tree: Config, contract: Contract, rows: list[dict[str, Any]]) -> None:
    """Write `rows` as a dataset of the store; fields that a row lacks are null."""
    full = [{name: row.get(name) for name in contract.schema.names} for row in rows]
    table = pa.Table.from_pylist(full, contract.schema)
    dataset.write(tree.at(contract.kind), contract, [table], inputs={}, config={})


def _states(tree: Config, products: int, rng: np.random.Generator) -> None:
    """Four states of sixteen numbers for every product."""
    made_by = {"encoder": tree.text.encoder}
    with artifact.write(
        tree.at(TEXT_STATES), kind=TEXT_STATES, version=TEXT_STATES_VERSION, inputs={}, config=made_by
    ) as draft:
        np.save(draft.path / "states.npy", rng.standard_normal((4 * products, 16)).astype(np.float16))
        np.save(draft.path / "offsets.npy", np.arange(0, 4 * products + 1, 4))
        np.save(draft.path / "text_of_item.npy", np.arange(products))
        draft.note(width=16)


def _rows(
    vocabulary: StdVocabulary, tokens: ReVocabulary, tree: Config, products: int, seed: int
) -> tuple[pa.Table, list[str]]:
    """Rows of TENSORS, and the titles that they were cut from."""
    rng = np.random.default_rng(seed)
    std_key, std_id, re_key, re_id, titles = [], [], [], [], []
    for product in range(products):
        values = {key: str(rng.choice(vocabulary.values(key)[:8])) for key in KEYS}
        words = [(str(rng.choice(KEYS)), str(word)) for word in rng.choice(WORDS, 3, replace=False)]
        title = f"{values['colour']} {values['fibre']} {values['category']} {rng.choice(PEOPLE)}"
        std_key.append([vocabulary.key_id(key) for key in values if product % 8 != 1])
        std_id.append([vocabulary.id_of(key, value) for key, value in values.items() if product % 8 != 1])
        pairs = [pair for key, word in words for pair in tokens.ids(key, word) if product % 8 != 2]
        re_key.append([key for key, _ in pairs])
        re_id.append([token for _, token in pairs])
        titles.append("" if product % 8 == 3 else title)
    rows = pa.table(
        {
            "product_id": [f"p{product:04}" for product in range(products)],
            "group": pa.array(range(products), pa.int32()),
            "std_key": std_key,
            "std_id": std_id,
            "re_key": re_key,
            "re_id": re_id,
            "title_id": text_encoder.load(tree.text).tokenize(titles, tree.text.max_tokens),
        }
    )
    return rows, titles
