"""The item tower's training where its numbers go wrong or a worker dies, through the stage's own `run`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rec import artifact, embed
from rec.config import Config
from rec.errors import ArtifactError, TrainingError
from rec.models import item_tower
from rec.train import checkpoint, item
from tests.item_tower import catalogue
from tests.train import loops
from tests.train.in_process import data_in_process

PRODUCTS, STEPS = 64, 2
"""Of the catalogue, and of an epoch of it."""

Facts = dict[str, Any]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


def shop(folder: Path) -> Config:
    """A catalogue, and three epochs by two workers."""
    tree = catalogue.shop(folder, PRODUCTS)
    train = tree.item_tower.train.model_copy(update={"epochs": 3, "num_workers": 2})
    return tree.model_copy(update={"item_tower": tree.item_tower.model_copy(update={"train": train})})


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> tuple[Config, Facts]:
    """A training that nothing disturbs, and what it told."""
    tree = shop(tmp_path_factory.mktemp("calm"))
    return tree, item.run(tree)


def content_hash(tree: Config, kind: str = item_tower.KIND) -> str:
    made = artifact.peek(tree.at(kind))
    assert made is not None
    return made.content_hash


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("loss", r"the loss of epoch 2, step 2 is nan, on the 16 products p0\d\d\d, .*, whose texts may be at fault"),
        pytest.param(
            "gradient",
            r"epoch 2 of 3 left weights that are no numbers, first in anchor, though its losses were",
            marks=pytest.mark.long,
        ),
    ],
)
def test_numbers_that_are_none_end_the_run_at_once_and_the_epoch_before_stays(
    calm: tuple[Config, Facts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    poisoned, starts = shop(tmp_path), tmp_path / "starts"
    with monkeypatch.context() as patch:
        patch.setattr(item, "loop", loops.Poisoned(what, 2 * STEPS, starts))
        with pytest.raises(TrainingError, match=said) as failed:
            item.run(poisoned)
    assert "lower item_tower.train.learning_rate=0.003 or raise item_tower.temperature=0.07; run" in str(failed.value)
    assert "run again with the same options it goes on after epoch 1, with others it starts over" in str(failed.value)
    assert starts.read_text().count("started") == 1
    (kept,) = (path for path in poisoned.at("runs").glob("item_tower-*/checkpoint_*") if path.is_dir())
    assert len(checkpoint.read(kept).history) == 1
    assert all(torch.isfinite(value).all() for value in load_file(kept / checkpoint.MODEL).values())
    item.run(poisoned)
    assert content_hash(poisoned) == content_hash(calm[0]), "what ended well before is gone on with"


def test_text_states_that_are_no_numbers_are_refused_with_their_product(tmp_path: Path) -> None:
    tree = shop(tmp_path)
    states = np.load(tree.at("text_states") / "states.npy")
    states[4 * 7 + 2, 5] = np.inf  # four states each
    np.save(tree.at("text_states") / "states.npy", states)
    with pytest.raises(
        ArtifactError, match=r"text states of product 7 of tensors, counted from 0, .* not finite: look"
    ):
        item.run(tree)


def test_a_killed_training_goes_on_and_ends_with_the_same_loss_and_vectors(
    calm: tuple[Config, Facts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one of them killed in the middle of the second epoch."""
    (undisturbed, told), shaken, flag = calm, shop(tmp_path), tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(item, "loop", loops.KilledOnce(item.loop, flag, STEPS + 2))
        made = item.run(shaken)
    assert flag.exists(), "no worker was killed"
    assert told["loss"] == made["loss"] > 0
    assert content_hash(undisturbed) == content_hash(shaken)
    with data_in_process():
        for tree in (undisturbed, shaken):
            embed.run(tree)
    assert content_hash(undisturbed, "vectors") == content_hash(shaken, "vectors")
