"""Marketing phrases in titles: what they are, and how far they move products whose vectors are known."""

from pathlib import Path

import numpy as np
import pytest

from rec import config, encode
from rec.enrich.attributes import from_rules
from rec.enrich.text import Canonical
from rec.evaluate import noise
from rec.models import item_tower, text_encoder
from rec.models.item_inputs import ItemInputs
from rec.schema import PRODUCTS
from rec.train import item
from rec.vocab.std import StdVocabulary
from tests.item_tower import catalogue
from tests.train.in_process import data_in_process, in_process


def test_no_phrase_names_an_attribute() -> None:
    vocabulary = StdVocabulary.load()
    for phrase in noise.PHRASES:
        assert from_rules(Canonical(phrase, phrase, None), vocabulary)[0] == [], phrase


def test_phrases_are_read_whole_and_descriptions_make_room(tmp_path: Path) -> None:
    """One title in three has no room; a description behind any of them fills what is left."""
    tree = config.load("demo", [f"store={tmp_path}", 'text.fields=["title", "description"]', "text.max_tokens=24"])
    titles = ["wool coat", "linen shirt " * 9, " "]
    given = [{"product_id": str(i), "title": titles[i % 3], "available": True} for i in range(30)]
    catalogue.put(tree, PRODUCTS, [{**product, "description": "soft and warm " * 9} for product in given])
    tokenizer = text_encoder.load_tokenizer(tree.text)
    told = dict(noise._told(tree, tokenizer))
    assert sorted(told) == list(range(0, 30, 3))
    for text in told.values():
        phrase = next(phrase for phrase in noise.PHRASES if text.startswith(f"wool coat {phrase}. soft and warm"))
        read, alone = tokenizer.tokenize([text, f"wool coat {phrase}"], 24)
        assert len(read) == 24
        assert read[: len(alone) - 1] == alone[:-1], "all but the mark of the end"
    assert dict(noise._told(tree, tokenizer)) == told


def test_overlap_is_the_share_of_neighbours_that_stay() -> None:
    angles = np.arange(40) * 0.05
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rows = np.array([5, 20])
    assert noise._overlap(vectors, vectors[rows], rows).tolist() == [1.0, 1.0]
    moved = np.stack([vectors[39], [np.cos(25.1 * 0.05), np.sin(25.1 * 0.05)]]).astype(np.float32)
    # at 39, product 5 would see 30 to 39, of which it had none; at 25.1, product 20 sees 21 to 30, of which it had five
    assert noise._overlap(vectors, moved, rows).tolist() == [0.0, 0.5]
    assert noise._overlap(vectors[:4], moved, np.array([0, 1])).tolist() == [1.0, 1.0]  # all three others, twice


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_products_with_phrases_are_placed_by_their_new_text(tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = catalogue.shop(tmp_path_factory.mktemp("noise"), 60)
    with data_in_process():
        encode.run(tree)
    quick = tree.item_tower.train.model_copy(update={"epochs": 1})
    tree = tree.model_copy(update={"item_tower": tree.item_tower.model_copy(update={"train": quick})})
    with in_process(item.loop):
        item.run(tree)
    items = ItemInputs.load(tree.at("tensors"), tree.at("text_states"))
    tower = item_tower.load(tree.at(item_tower.KIND))
    made = {
        "full": tower(items.batch(np.arange(len(items)))).detach().numpy(),
        "rawtext": items.text_vectors(),
    }
    figures = noise.measure("noise.x", tree, {"full": tree}, made)
    assert figures.pop("noise.x.n")["value"] == sum(index % 8 != 3 for index in range(60))  # all that have a title
    assert set(figures) == {
        "noise.x.rawtext.overlap10",
        "noise.x.full.overlap10",
        "noise.x.full.minus.rawtext.overlap10",
    }
    for name in ("rawtext", "full"):
        assert 0.1 < figures[f"noise.x.{name}.overlap10"]["value"] < 1.0
    again = noise.measure("noise.x", tree, {"full": tree}, made)
    assert {name: again[name] for name in figures} == figures
    silent = pytest.MonkeyPatch()
    silent.setattr(noise, "PHRASES", ("",))
    try:
        still = noise.measure("noise.x", tree, {"full": tree}, made)
    finally:
        silent.undo()
    assert still["noise.x.full.overlap10"]["value"] > 0.99
