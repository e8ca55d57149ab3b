"""encode, pretrain and embed on a small catalogue, through real Ray Data and Ray Train."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from rec import artifact, config, dataset, embed, encode
from rec.config import Config
from rec.errors import ArtifactError, ConfigError
from rec.models import item_tower, known_ids, text_encoder
from rec.models.item_inputs import ItemInputs
from rec.models.item_tower import ItemTower
from rec.schema import TENSORS, vectors
from rec.train import contrast, item, text_start
from rec.vocab.re import ReVocabulary
from tests.item_tower import catalogue
from tests.train import loops
from tests.train.in_process import data_in_process, in_process

PRODUCTS = 96

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Config:
    """A catalogue that went through all three stages."""
    tree = catalogue.write(tmp_path_factory.mktemp("catalogue"), PRODUCTS)
    encoded, trained = encode.run(tree), item.run(tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "BLOCK_ROWS", 20)  # several blocks, the last one not full
        embedded = embed.run(tree)
    assert "skipped" not in encoded | trained | embedded
    assert encoded["items"] == trained["items"] == embedded["rows"] == PRODUCTS
    return tree


def inputs(tree: Config) -> ItemInputs:
    return ItemInputs.load(tree.at("tensors"), tree.at("text_states"))


def stored_vectors(tree: Config) -> NDArray[np.float32]:
    width = tree.item_tower.width
    column = dataset.read(tree.at("vectors"), vectors(width))["vector"].combine_chunks()
    rows: NDArray[np.float32] = column.flatten().to_numpy().reshape(-1, width)
    return rows


def test_what_is_done_is_not_done_again(made: Config) -> None:
    orphans = [made.at("runs") / name for name in ("item_tower-0123", "item_tower-0123-inputs")]
    for orphan in orphans:  # a run of other options that was killed
        orphan.mkdir()
    train = made.item_tower.train.model_copy(update={"max_failures": 7, "cpus_per_worker": 2})
    tower = made.item_tower.model_copy(update={"train": train})
    text = made.text.model_copy(update={"num_actors": 2, "batch_size": 9})
    other = made.model_copy(update={"item_tower": tower, "text": text})
    for given in (made, other):  # more means make the same thing
        assert [stage.run(given)["skipped"] for stage in (encode, item, embed)] == [True, True, True]
    assert not list(made.at("runs").iterdir()), "checkpoints of a finished run are removed"


def test_a_training_that_is_stopped_within_an_epoch_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same bytes and learning curves; one that writes no checkpoint within epochs ends with them, too."""
    small = [f"item_tower.train.{option}" for option in ("epochs=2", "batch_size=2")]
    for name in ("calm", "shaken"):
        (tmp_path / name).mkdir()
    calm = catalogue.write(tmp_path / "calm", 50, overrides=small)
    shaken = catalogue.write(tmp_path / "shaken", 50, overrides=[*small, "item_tower.train.checkpoint_minutes=0"])
    with data_in_process():
        for tree in (calm, shaken):
            encode.run(tree)
    read: list[int] = []
    with in_process(item.loop):
        item.run(calm)
        for epoch, step in ((0, 20), (1, 20)):
            with monkeypatch.context() as patch:
                loops.interrupted_at(epoch, step, patch)
                with pytest.raises(KeyboardInterrupt):
                    item.run(shaken)
        draw = contrast.draw
        monkeypatch.setattr(contrast, "draw", lambda *given: (read.append(1), draw(*given))[1])
        item.run(shaken)
    assert len(read) == 5, "the steps after the last checkpoint"
    for tree in (calm, shaken):
        assert not list(tree.at("runs").iterdir())
    hashes = [artifact.peek(tree.at(item_tower.KIND)) for tree in (calm, shaken)]
    assert hashes[0] is not None
    assert hashes[1] is not None
    assert hashes[0].content_hash == hashes[1].content_hash


def test_every_text_is_encoded_once_and_each_item_finds_its_own(made: Config) -> None:
    titles = dataset.read(made.at("tensors"), TENSORS, ["title_id"])["title_id"].to_pylist()
    folder = made.at("text_states")
    states = np.load(folder / "states.npy", allow_pickle=False)
    offsets = np.load(folder / "offsets.npy", allow_pickle=False)
    text_of_item = np.load(folder / "text_of_item.npy", allow_pickle=False)
    assert len(offsets) - 1 == len({tuple(title) for title in titles}) < PRODUCTS
    assert states.dtype == np.float16
    expected = text_encoder.load(made.text).token_states(titles, 7)
    for row, text in enumerate(text_of_item):
        found = states[offsets[text] : offsets[text + 1]].astype(np.float32)
        np.testing.assert_allclose(found, expected[row].astype(np.float32), atol=2e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("stage", "kind"), [(encode, "text_states"), (item, "item_tower"), (embed, "vectors")])
def test_no_stage_waits_for_a_gpu_that_there_is_not(
    made: Config, tmp_path: Path, stage: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FEW", 0)  # so few texts wait for no actor
    shutil.copytree(made.root, tmp_path / made.name)
    shutil.rmtree(tmp_path / made.name / kind)
    tower = made.item_tower.model_copy(update={"train": made.item_tower.train.model_copy(update={"use_gpu": True})})
    text = made.text.model_copy(update={"use_gpu": True})
    asking = made.model_copy(update={"store": str(tmp_path), "item_tower": tower, "text": text})
    with pytest.raises(ConfigError, match=r"use_gpu asks for 1 GPU, and Ray sees 0: set .*use_gpu=false"):
        stage.run(asking)
    assert artifact.peek(asking.at(kind)) is None


def test_neither_the_number_of_actors_shows_nor_that_there_is_none(
    made: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FEW", 0)
    tree = catalogue.write(tmp_path, PRODUCTS)
    two = tree.model_copy(update={"text": tree.text.model_copy(update={"num_actors": 2, "batch_size": 256})})
    encode.run(two)
    hashes = [artifact.peek(at.at("text_states")) for at in (made, two)]
    assert hashes[0] is not None
    assert hashes[1] is not None
    assert hashes[0].content_hash == hashes[1].content_hash


def test_every_product_has_its_vector_once_in_order(made: Config) -> None:
    ids = dataset.read(made.at("vectors"), vectors(made.item_tower.width))["product_id"].to_pylist()
    assert ids == dataset.read(made.at("tensors"), TENSORS, ["product_id"])["product_id"].to_pylist()
    tower, items = item_tower.load(made.at("item_tower")), inputs(made)
    found = stored_vectors(made)
    with torch.inference_mode():
        alone = torch.cat([tower(items.batch(np.array([row]))) for row in range(PRODUCTS)]).numpy()
    assert (found * alone).sum(axis=1).min() >= 1 - 1e-5
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_of_a_vector_the_numbers_of_std_are_those_of_the_same_std(made: Config) -> None:
    width = made.item_tower.std_width
    lists = dataset.read(made.at("tensors"), TENSORS, ["std_id"])["std_id"].to_pylist()
    told = stored_vectors(made)[:, -width:] / made.item_tower.std_share**0.5
    np.testing.assert_allclose(np.linalg.norm(told, axis=1), 1, atol=1e-4)
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(lists):
        rows_of.setdefault(tuple(sorted(ids)), []).append(row)
    assert 1 < len(rows_of) < PRODUCTS
    for rows in rows_of.values():
        np.testing.assert_allclose(told[rows], told[rows[:1]].repeat(len(rows), 0), atol=1e-4)
    firsts = told[[rows[0] for rows in rows_of.values()]]
    assert ((firsts @ firsts.T > 0.999).sum(1) == 1).mean() > 0.9, "values are told apart"


def copy_of(made: Config, folder: Path) -> Config:
    """The store of `made`, to be changed."""
    shutil.copytree(made.at("vectors").parent, folder / made.name)
    return made.model_copy(update={"store": str(folder)})


def rewrite(tree: Config, rows: pa.Table) -> None:
    """Other tensors, and the text states of the same titles under their hash."""
    made = dataset.read_manifest(tree.at("tensors"), TENSORS)
    dataset.write(tree.at("tensors"), TENSORS, [rows], inputs={}, config=dict(made.config))
    with data_in_process():
        encode.run(tree)


def test_only_products_of_which_the_tower_reads_something_else_are_embedded_again(made: Config, tmp_path: Path) -> None:
    tree = copy_of(made, tmp_path)
    before = stored_vectors(tree)
    rows = dataset.read(tree.at("tensors"), TENSORS).to_pylist()
    rows[7]["std_id"], rows[7]["std_key"] = rows[7]["std_id"][:1], rows[7]["std_key"][:1]
    rows[9]["title_id"] = rows[10]["title_id"]
    del rows[20]
    rows.append({**rows[0], "product_id": "new"})
    rewrite(tree, pa.Table.from_pylist(rows, schema=TENSORS.schema))
    facts = embed.run(tree)
    assert (facts["rows"], facts["kept"], facts["embedded"]) == (PRODUCTS, PRODUCTS - 3, 3)
    found = stored_vectors(tree)
    same = [row for row in range(PRODUCTS) if row not in (7, 9, 20)]
    kept = [row if row < 20 else row - 1 for row in same]
    assert (found[kept] == before[same]).all()
    tower, items = item_tower.load(tree.at("item_tower")), inputs(tree)
    with torch.inference_mode():
        alone = tower(items.batch(np.arange(PRODUCTS))).numpy()
    assert (found * alone).sum(axis=1).min() >= 1 - 1e-5
    assert (found[[7, 9]] * before[[7, 9]]).sum(axis=1).max() < 1 - 1e-4
    assert embed.run(tree)["skipped"]


def test_another_tower_keeps_no_vector(made: Config, tmp_path: Path) -> None:
    train = made.item_tower.train.model_copy(update={"epochs": 1})
    other = made.item_tower.model_copy(update={"train": train})
    tree = copy_of(made, tmp_path).model_copy(update={"item_tower": other})
    with in_process(item.loop), data_in_process():
        item.run(tree)
        assert embed.run(tree)["kept"] == 0


def test_other_words_under_the_same_ids_are_refused(made: Config, tmp_path: Path) -> None:
    tree = copy_of(made, tmp_path)
    shutil.rmtree(tree.at("vectors"))
    words = ReVocabulary.load(tree.at("vocabulary") / "re.json")
    ReVocabulary(words.keys, words.tokens[::-1]).save(tree.at("vocabulary") / "re.json")
    with pytest.raises(
        ArtifactError, match=f"RE token '{words.tokens[0]}' that the item .* is '{words.tokens[-1]}' in"
    ):
        embed.run(tree)
    (tree.at("item_tower") / known_ids.FILE).unlink()
    with data_in_process():
        assert embed.run(tree)["rows"] == PRODUCTS, "a tower of an earlier program does not say what it knows"


def test_products_with_an_id_newer_than_the_tower_keep_no_vector(made: Config) -> None:
    rows = dataset.read(made.at("tensors"), TENSORS)
    shape = item_tower.read_shape(made.at("item_tower"))
    assert not embed._newer(rows, shape).any()
    largest = max(max(ids, default=0) for ids in rows["re_id"].to_pylist())
    carrying = [largest in ids for ids in rows["re_id"].to_pylist()]
    assert embed._newer(rows, replace(shape, num_re_tokens=largest)).tolist() == carrying


def test_a_killed_embedding_goes_on_after_its_last_block(
    made: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "BLOCK_ROWS", 20)
    calm, killed = copy_of(made, tmp_path / "calm"), copy_of(made, tmp_path / "killed")
    for tree in (calm, killed):
        shutil.rmtree(tree.at("vectors"))
    with data_in_process():
        embed.run(calm)
    whole, asked = embed._embedded, []

    def torn(config: Config, blocks: list[Any], waiting: list[int]) -> Iterator[Any]:
        asked.append(list(waiting))
        for count, made_block in enumerate(whole(config, blocks, waiting)):
            if len(asked) == 1 and count == 2:
                raise KeyboardInterrupt
            yield made_block

    monkeypatch.setattr(embed, "_embedded", torn)
    with pytest.raises(KeyboardInterrupt):
        embed.run(killed)
    with data_in_process():
        embed.run(killed)
    assert [len(waiting) for waiting in asked] == [5, 3], "two of five blocks were there"
    hashes = [
        dataset.read_manifest(tree.at("vectors"), vectors(tree.item_tower.width)).content_hash
        for tree in (calm, killed)
    ]
    assert hashes[0] == hashes[1]
    assert not list(killed.at("runs").glob("vectors-*"))
    left = killed.at("runs") / "vectors-0123456789abcdef"
    left.mkdir()  # as by a run that was killed after its dataset was written
    assert embed.run(killed)["skipped"]
    assert not left.exists()


def test_after_training_a_view_finds_its_twin(made: Config) -> None:
    trained, items = item_tower.load(made.at("item_tower")), inputs(made)
    torch.manual_seed(made.seed)
    tower = ItemTower(trained.shape).eval()
    drawn = _twins_first(tower, items, made)
    text_start.apply(tower, items, torch.device("cpu"))
    started, after = _twins_first(tower, items, made), _twins_first(trained, items, made)
    assert after > drawn + 0.1, f"share of views whose twin is nearest: {drawn:.2f} as drawn, {after:.2f} after"
    assert after > started + 0.02, f"{started:.2f} at the start, {after:.2f} after"
    assert after > 0.6


def _twins_first(tower: ItemTower, items: ItemInputs, tree: Config) -> float:
    """Mean over five draws of the views: share of first views whose nearest second view is of the same product."""
    shares = []
    for seed in range(5):
        batch = items.batch(np.arange(PRODUCTS))
        views = contrast.two_views(batch, tower.shape.num_keys, tree.item_tower, np.random.default_rng(100 + seed))
        with torch.inference_mode():
            first, second = tower(views).chunk(2)
        shares.append(float(((first @ second.T).argmax(1) == torch.arange(PRODUCTS)).float().mean()))
    return sum(shares) / len(shares)


def test_two_actors_embed_what_one_does(made: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "BLOCK_ROWS", 20)
    tree = copy_of(made, tmp_path)
    shutil.rmtree(tree.at("vectors"))
    train = tree.item_tower.train.model_copy(update={"num_workers": 2})
    two = tree.model_copy(update={"item_tower": tree.item_tower.model_copy(update={"train": train})})
    assert embed.run(two)["embedded"] == PRODUCTS
    hashes = [
        dataset.read_manifest(at.at("vectors"), vectors(made.item_tower.width)).content_hash for at in (made, two)
    ]
    assert hashes[0] == hashes[1]


def test_titles_of_another_tokenizer_are_refused(made: Config, tmp_path: Path) -> None:
    other = made.model_copy(update={"text": made.text.model_copy(update={"encoder": "distilbert-base-uncased"})})
    with pytest.raises(ArtifactError, match=r"for text\.encoder 'minilm', not 'distilbert-base-uncased': run `python"):
        encode.run(other)


def test_more_actors_than_ray_has_cpus_for_are_refused(made: Config, tmp_path: Path) -> None:
    tree = copy_of(made, tmp_path)
    shutil.rmtree(tree.at("vectors"))
    train = tree.item_tower.train.model_copy(update={"num_workers": 9})
    many = tree.model_copy(update={"item_tower": tree.item_tower.model_copy(update={"train": train})})
    with pytest.raises(ConfigError, match=r"train\.num_workers x .*cpus_per_worker is 9, but Ray was started with 4"):
        embed.run(many)


def test_missing_inputs_and_resources_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "FEW", 0)
    tree = catalogue.write(tmp_path, 8)
    with pytest.raises(ArtifactError, match=r"run `python jobs/encode\.py` first"):
        item.run(tree)
    many = config.load(str(tmp_path / "catalogue.toml"), ["text.num_actors=9"])
    with pytest.raises(ConfigError, match=r"text\.num_actors x text\.cpus_per_actor is 9, but Ray was started with 4"):
        encode.run(many)
