"""A small catalogue as the stages before encode leave it: vocabulary and tensors of invented garments."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rec import artifact, config, dataset
from rec.config import Config
from rec.models import text_encoder
from rec.schema import TENSORS
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
    rows = _rows(vocabulary, tokens, tree, products, np.random.default_rng(seed))
    made_by = {"text": {"encoder": tree.text.encoder}, "seed": seed}
    dataset.write(tree.at("tensors"), TENSORS, [rows], inputs={}, config=made_by)
    return tree


def _rows(
    vocabulary: StdVocabulary, tokens: ReVocabulary, tree: Config, products: int, rng: np.random.Generator
) -> pa.Table:
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
    return pa.table(
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
