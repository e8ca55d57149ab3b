"""An encoder in a folder, frozen or trained with the item tower: encode, pretrain and embed on a small DistilBERT."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from rec import artifact, config, dataset, embed, encode
from rec.config import Config
from rec.errors import ArtifactError, ConfigError
from rec.models import item_tower, text_encoder
from rec.models.item_inputs import ItemInputs
from rec.schema import TENSORS, vectors
from rec.train import item
from tests.item_tower import catalogue, encoders
from tests.train.in_process import data_in_process, in_process

PRODUCTS = 24
STEP = 0.01

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module", params=["frozen", "top", "full"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Config:
    """A catalogue that went through all three stages, and whose encoder is no longer where it was."""
    folder = tmp_path_factory.mktemp(request.param)
    words = [word for text in catalogue.PEOPLE for word in text.split()]
    encoder = encoders.write(folder / "encoder", list(dict.fromkeys(words)))
    overrides = [
        f"text.encoder={encoder}",
        f"item_tower.text={request.param}",
        "item_tower.text_layers=1",
        f"item_tower.text_learning_rate={STEP}",
        "item_tower.train.epochs=2",
        "item_tower.train.batch_size=12",
    ]
    tree = catalogue.write(folder, PRODUCTS, overrides=overrides)
    with in_process(item.loop), data_in_process():
        assert "skipped" not in encode.run(tree) | item.run(tree)
        os.rename(encoder, folder / "elsewhere")
        assert "skipped" not in embed.run(tree)
    return tree


def taken(tree: Config) -> dict[str, torch.Tensor]:
    """What the tower took of the encoder, as it was."""
    if tree.item_tower.text == "frozen":
        return {}
    text = tree.text.model_copy(update={"encoder": str(Path(tree.text.encoder).with_name("elsewhere"))})
    return text_encoder.load_layers(text, 1 if tree.item_tower.text == "top" else None).state_dict()


def states(tree: Config) -> NDArray[np.float16]:
    found: NDArray[np.float16] = np.load(tree.at("text_states") / "states.npy", allow_pickle=False)
    return found


def test_states_end_where_the_tower_begins(made: Config) -> None:
    text = made.text.model_copy(update={"encoder": str(Path(made.text.encoder).with_name("elsewhere"))})
    above = made.item_tower.layers_above_states
    manifest = artifact.peek(made.at("text_states"))
    assert manifest is not None
    assert manifest.config.get("layers_above", 0) == above == (made.item_tower.text == "top")
    titles = dataset.read(made.at("tensors"), TENSORS, ["title_id"])["title_id"].to_pylist()
    expected = text_encoder.load(text, above).token_states(list({tuple(t): t for t in titles}.values()), 7)
    np.testing.assert_allclose(states(made).astype(np.float32), np.concatenate(expected).astype(np.float32), atol=2e-3)


def test_all_that_the_tower_holds_of_the_encoder_was_trained_and_nothing_below(made: Config) -> None:
    weights = load_file(made.at("item_tower") / item_tower.WEIGHTS)
    before = taken(made)
    assert {name for name in weights if name.startswith("text.")} == {f"text.{name}" for name in before}
    numbers = {name.split(".layer.")[1][0] for name in before if ".layer." in name}
    assert len(numbers) == {"frozen": 0, "top": 1, "full": encoders.LAYERS}[made.item_tower.text]
    assert any("word_embeddings" in name for name in before) == (made.item_tower.text == "full")
    steps = 2 * PRODUCTS / 12
    for name, weight in before.items():
        moved = (weights[f"text.{name}"] - weight).abs().max().item()
        assert 0 < moved < steps * STEP, f"{name} moved by {moved}"


def test_every_product_has_its_vector_and_needs_no_encoder(made: Config) -> None:
    tower = item_tower.load(made.at("item_tower"))
    items = ItemInputs.load(made.at("tensors"), made.at("text_states"), ids=tower.shape.reads_ids)
    found = dataset.read(made.at("vectors"), vectors(made.item_tower.width))["vector"].combine_chunks().flatten()
    with torch.inference_mode():
        alone = torch.cat([tower(items.batch(np.array([row]))) for row in range(PRODUCTS)]).numpy()
    assert (found.to_numpy().reshape(PRODUCTS, -1) * alone).sum(axis=1).min() >= 1 - 1e-5
    assert [stage.run(made)["skipped"] for stage in (encode, item, embed)] == [True, True, True]


def test_other_states_and_encoders_are_refused_with_the_difference(made: Config, tmp_path: Path) -> None:
    tower = made.item_tower.model_copy(update={"text": "top", "text_layers": 2})
    with pytest.raises(ArtifactError, match=r"reads states .*encoder', 2 layers below its last: run `python jobs/enc"):
        item.run(made.model_copy(update={"item_tower": tower}))
    text = made.text.model_copy(update={"encoder": "minilm"})
    with pytest.raises(ArtifactError, match=r"cut into tokens for text\.encoder '.*encoder', but .* of 'minilm'"):
        item.run(made.model_copy(update={"text": text}))
    if made.item_tower.text != "frozen":
        longer = made.item_tower.train.model_copy(update={"epochs": 3})
        again = made.model_copy(update={"item_tower": made.item_tower.model_copy(update={"train": longer})})
        with pytest.raises(
            ConfigError, match=r"text\.encoder '.*encoder' cannot be loaded .*: give 'minilm', a local fold"
        ):
            item.run(again)


def test_other_weights_in_the_same_folder_are_another_encoder(tmp_path: Path) -> None:
    """Stages refuse what the earlier weights made until the stages before them ran again, and none says skipped."""
    encoder = encoders.write(tmp_path / "encoder", ["warm", "coat"])
    overrides = [f"text.encoder={encoder}", "item_tower.train.epochs=1", "item_tower.train.batch_size=12"]
    tree = catalogue.write(tmp_path, PRODUCTS, overrides=overrides)
    with in_process(item.loop), data_in_process():
        assert "skipped" not in encode.run(tree) | item.run(tree) | embed.run(tree)
        before = states(tree)
        encoders.change(encoder)
        with pytest.raises(
            ArtifactError, match=r"tensors was made with other files in the folder .*run `python jobs/t"
        ):
            item.run(tree)
        with pytest.raises(
            ArtifactError, match=r"tensors was made with other files .*encode\.py` reads: run `python jobs/tens"
        ):
            encode.run(tree)
        shutil.rmtree(tree.at("tensors"))
        catalogue.write(tmp_path, PRODUCTS, overrides=overrides)
        with pytest.raises(ArtifactError, match=r"text_states was made with other files in the folder text\.encoder"):
            item.run(tree)
        assert "skipped" not in encode.run(tree)
        with pytest.raises(ArtifactError, match=r"made with other files .* than the item tower in .*item_tower reads"):
            embed.run(tree)
        assert "skipped" not in item.run(tree) | embed.run(tree)
    np.testing.assert_allclose(states(tree).astype(np.float32), before.astype(np.float32) + 1, atol=1e-2)


def test_a_tower_of_other_states_is_not_embedded(made: Config, tmp_path: Path) -> None:
    tree = config.load(str(made.root.parent / "catalogue.toml"), [f"store={tmp_path}"])
    for name in ("tensors", "vocabulary", "item_tower"):
        tree.at(name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(made.at(name), tree.at(name))
    work = {"kind": "text_states", "version": 1, "inputs": {}}
    with artifact.write(tree.at("text_states"), **work, config={"encoder": "minilm"}):
        pass
    with pytest.raises(ArtifactError, match=r"holds states of text\.encoder 'minilm', but the item tower in .* reads"):
        embed.run(tree)
