"""What watches the training of the item tower: probes, learning curves, and a loss that is no number."""

from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rec import dataset
from rec.config import ItemTower as Options
from rec.errors import TrainingError
from rec.models.item_tower import ItemTower, Shape
from rec.schema import TENSORS
from rec.train import curves
from rec.train.ddp import Epoch
from rec.train.probe import Probe
from rec.train.watch import Watch
from tests.item_tower.products import Product, inputs

PAIRED = [Product([(1, 1 + i // 20), (2, 10 + i % 25)], [(3, 1 + i % 28)], 1 + i % 4, seed=i) for i in range(80)]
CATEGORIES = np.array([1 + i // 20 for i in range(80)])


def probe(**options: float) -> Probe:
    return Probe(inputs(PAIRED), CATEGORIES, Options(**options), 3)


def test_probes_of_a_tower_that_sees_everything_twice(tower: ItemTower) -> None:
    same = probe(feature_dropout=0.0, token_dropout=0.0).measure(tower)
    assert same["alignment"] == pytest.approx(0, abs=1e-9)
    assert same["twin_found"] == 1.0
    noisy = probe(feature_dropout=0.5, token_dropout=0.5).measure(tower)
    assert noisy["alignment"] > 0.01
    assert noisy["twin_found"] < 1.0
    assert noisy["uniformity"] == same["uniformity"] < 0, "it is of the whole products"
    assert noisy == probe(feature_dropout=0.5, token_dropout=0.5).measure(tower)
    assert not tower.training


def test_uniformity_and_purity_are_those_of_the_vectors(shape: Shape) -> None:
    """A stand-in that places every category at its own axis."""

    class Axes(ItemTower):
        def forward(self, batch: object) -> torch.Tensor:
            return torch.nn.functional.one_hot(batch.std_id[:, 0], 16).float()  # type: ignore[attr-defined]

    found = Probe(inputs(PAIRED), CATEGORIES, Options(feature_dropout=0.0), 3).measure(Axes(shape).train())
    assert found["same_category"] == 1.0
    same = 19 / 79  # of the pairs of a product
    assert found["uniformity"] == pytest.approx(np.log(same + (1 - same) * np.exp(-4)), rel=1e-5)
    shuffled = np.random.default_rng(0).permutation(CATEGORIES)
    chance = Probe(inputs(PAIRED), shuffled, Options(feature_dropout=0.0), 3).measure(Axes(shape))
    assert chance["same_category"] < 0.5


def test_a_catalogue_too_small_for_neighbours_has_no_purity(tower: ItemTower) -> None:
    few = Probe(inputs(PAIRED[:5]), CATEGORIES[:5], Options(), 3).measure(tower)
    assert "same_category" not in few
    alone = Probe(inputs(PAIRED[:1]), CATEGORIES[:1], Options(), 3).measure(tower)
    assert set(alone) == {"alignment", "twin_found"}


def test_learning_curves_show_every_metric_of_every_epoch(tmp_path: Path) -> None:
    history = [{"loss": 2.5, "twin_found": 0.25}, {"loss": 1.125, "twin_found": 0.5, "late": 3.0}]
    curves.write(tmp_path, "a <tower>", history)
    page = (tmp_path / curves.PAGE).read_text(encoding="utf-8")
    assert "a &lt;tower&gt;" in page
    assert all(said in unescape(page) for said in ("<svg", "loss", "twin found", "late", "1.125"))
    assert page == curves.page("a <tower>", history)
    assert (tmp_path / curves.JSON).read_text(encoding="utf-8").count("loss") == 2


def watch(folder: Path, epoch: int = 0) -> Watch:
    blank = {name: [[]] * 200 for name in TENSORS.schema.names}
    rows = pa.table({**blank, "product_id": [f"p{i}" for i in range(200)], "group": list(range(200))})
    dataset.write(folder, TENSORS, [rows.cast(TENSORS.schema)], inputs={}, config={})
    return Watch(Epoch(epoch, 9, np.random.default_rng(0), remedy="lower the rate"), folder)


@pytest.mark.parametrize(("bad", "shown"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_loss_that_is_no_number_ends_the_training_and_names_its_batch(tmp_path: Path, bad: float, shown: str) -> None:
    told = watch(tmp_path / "tensors", epoch=2)
    steps = [np.arange(4 * step, 4 * step + 4) for step in range(45)]
    for step, rows in enumerate(steps):
        told.add(rows, torch.tensor(bad if step >= 43 else 1.0), torch.tensor(0.5))
    with pytest.raises(TrainingError) as failed:
        told.means()
    said = str(failed.value)
    assert f"the loss of epoch 3, step 44 is {shown}, on the 4 products p172, p173, p174, p175" in said
    assert "lower the rate; run again with the same options it goes on after epoch 2, with others it" in said


def test_means_are_those_of_all_steps(tmp_path: Path) -> None:
    told = watch(tmp_path / "tensors")
    for step in range(45):
        told.add(np.arange(4), torch.tensor(float(step)), torch.tensor(float(step % 2)))
    loss, hits = told.means()
    assert (loss, hits) == (pytest.approx(22), pytest.approx(22 / 45))
