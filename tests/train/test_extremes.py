"""Products with hardly anything to read, or far too much, from tensorize to their vectors."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from rec import config, dataset, embed, encode
from rec.schema import TENSORS, vectors
from rec.train import item
from rec.vocab import tensorize
from tests.train.in_process import data_in_process, in_process
from tests.vocab.products import Product, write

GARMENTS: list[Product] = [
    (f"g{number}", f"{colour} {kind}", None, [("category", kind), ("colour", colour)], [("fibre", f"{feel} cotton")])
    for number, (colour, kind, feel) in enumerate(
        (colour, kind, feel)
        for colour in ("red", "blue", "black")
        for kind in ("coat", "dress", "t-shirt")
        for feel in ("soft", "crisp")
    )
]
UNKNOWN = "unknown"
EXTREMES: list[Product] = [
    ("nothing", "", None, [], []),
    ("spaces", " \t ", None, [], []),
    ("one token", "a", None, [], []),
    ("unseen script", "𓀀𓂀 𓃠", None, [], [("detail", "𓆏")]),
    ("only unknowns", "", None, [("category", UNKNOWN), ("colour", UNKNOWN), ("fibre", UNKNOWN)], []),
    ("no STD", "blue coat", None, [], [("fibre", "soft cotton")]),
    ("no RE", "blue dress coat", None, [("category", "coat")], []),
    ("no title", "", None, [("category", "coat")], [("fibre", "soft cotton")]),
    ("ten thousand tokens", "soft " * 10_000, None, [("category", "coat")], []),
    ("ten thousand words of RE", "coat", None, [], [("detail", " ".join(f"word{n}" for n in range(10_000)))]),
]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_extreme_products_are_trained_on_and_get_unit_vectors_of_their_own(tmp_path: Path) -> None:
    small = ["epochs=3", "batch_size=8", "cpus_per_worker=1"]
    tree = config.load(
        "demo", [f"store={tmp_path}", "vocab.min_count=1", *(f"item_tower.train.{each}" for each in small)]
    )
    write(tree, GARMENTS + EXTREMES)
    tensorize.run(tree)
    with data_in_process(), in_process(item.loop):
        encode.run(tree)
        trained = item.run(tree)
        embed.run(tree)
    assert np.isfinite(trained["loss"])
    ids = [product[0] for product in GARMENTS + EXTREMES]
    made = dataset.read(tree.at("vectors"), vectors(tree.item_tower.width))
    assert made["product_id"].to_pylist() == ids
    found = np.array(made["vector"].to_pylist(), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    tensors = dataset.read(tree.at("tensors"), TENSORS)
    assert pc.max(pc.list_value_length(tensors["title_id"])).as_py() == tree.text.max_tokens
    alike = found @ found.T
    at = {name: row for row, name in enumerate(ids)}
    assert alike[at["nothing"], at["spaces"]] >= 1 - 1e-5, "nothing is to be read of either"
    of_their_own = [row for row in range(len(ids)) if ids[row] != "spaces"]
    others = alike[np.ix_(of_their_own, of_their_own)] - 2 * np.eye(len(of_their_own))
    assert others.max() < 1 - 1e-5
