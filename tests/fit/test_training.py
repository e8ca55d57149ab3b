"""Training on Ray Train finds planted sizes, nothing where nothing is, and ends the same however it is stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rec import histories, worn
from rec.config import Config, Fit, FitTrain
from rec.errors import ArtifactError
from rec.evaluate.fit import macro_auc
from rec.models import fit_head
from rec.schema import INTERACTIONS
from rec.train import curves, fit
from tests import pickles
from tests.fit import world

OPTIONS = Fit(
    enabled=True,
    width=2,
    history=4,
    profile_dropout=0.05,
    train=FitTrain(epochs=5, batch_size=32, learning_rate=0.03, cpus_per_worker=1),
)


def _config(store: Path) -> Config:
    return Config(name="fit", store=str(store), fit=OPTIONS)


def _figures(config: Config) -> dict[str, dict[str, object]]:
    return json.loads((config.at("fit_head") / fit.REPORT).read_text())["figures"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Config:
    """The artifact of a run that was killed after its last epoch and started again."""
    config = _config(tmp_path_factory.mktemp("fit"))
    world.make(config.root)
    save, found = fit_head.save, []

    def watched(*parts: Any) -> None:
        found.append(sorted(config.at("runs").glob("*/checkpoint_*")))
        if len(found) == 1:
            raise KeyboardInterrupt
        save(*parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_head, "save", watched)
        with pytest.raises(KeyboardInterrupt):
            fit.run(config)
        assert not config.at("fit_head").exists()
        assert fit.run(config)["test"] > 150
    assert found[0] == found[1] != [], "trained again"
    return config


@pytest.mark.slow
def test_planted_sizes_are_foretold_better_than_by_any_frequency(trained: Config) -> None:
    figures = _figures(trained)
    assert figures["fit_head.auc"]["value"] > 0.85
    for other in ("majority", "item_frequency", "user_frequency", "fit_head_without_past"):
        assert figures[f"fit_head.minus.{other}.auc"]["ci95"][0] > 0, other
        assert figures[f"fit_head.minus.{other}.log_loss"]["ci95"][1] < 0, other
    facts = fit.run(trained)
    assert facts["skipped"]
    assert facts["metrics"]["log_loss"] == min(epoch["log_loss"] for epoch in _epochs(trained))
    assert list(trained.at("runs").iterdir()) == []


def _epochs(config: Config) -> list[dict[str, float]]:
    return json.loads((config.at("fit_head") / curves.JSON).read_text())["epochs"]


@pytest.mark.slow
def test_who_is_too_big_for_a_size_is_told_so_and_cold_parts_work(trained: Config) -> None:
    head, items = fit_head.load(trained.at("fit_head"))
    h, of = histories.load(trained.root), worn.load(trained.root)
    module, asked, _ = fit.build(h, of, fit.content(trained.root), trained.fit)
    event = np.flatnonzero(np.diff(h.offsets) >= 1)[:1]
    batch = asked.batch(np.array([h.offsets[event[0]]]))  # a first event: nothing before it
    assert not batch.past_known.any()

    def chances(height: float, item: int, size: int) -> np.ndarray:
        found = head.sizes.encode(items.kind[[item]], [str(size)], np.array([size], np.float32))
        garment = fit_head.Garments(
            *(torch.from_numpy(x) for x in (items.kind[[item]], found.name, found.pair, found.z, items.location[[item]],
                                            items.spread[[item]], items.vector[[item]]))
        )  # fmt: skip
        empty = fit_head.Past(
            module._garments(batch.past_items[:, :0], batch.past_name[:, :0], batch.past_pair[:, :0],
                             batch.past_z[:, :0], torch.zeros(1, 0, 2 + trained.fit.width)),
            batch.past_fits[:, :0], batch.past_known[:, :0],
        )  # fmt: skip
        with torch.inference_mode():
            made, _ = head(torch.tensor([[height]]), empty, garment, torch.zeros(1, dtype=torch.int64))
        return made.exp()[0].numpy()

    for item in (0, 1, world.NEVER):  # a dress, a coat, a coat that nobody ever had
        assert chances(188, item, 6)[0] > 0.8, "too big for an 8"
        assert chances(155, item, 20)[2] > 0.8, "too small for a 20"
    assert np.isfinite(chances(np.nan, 0, 12)).all()
    dress = [chances(170, 0, size)[1] for size in world.SIZES]
    coat = [chances(170, 1, size)[1] for size in world.SIZES]
    assert np.argmax(coat) > np.argmax(dress), "coats run small"
    offered = [set(items.offered[begin:end]) for begin, end in zip(items.offsets[:-1], items.offsets[1:], strict=True)]
    coats = set().union(*(offered[item] for item in range(1, world.NEVER, 2)))
    assert len(offered[world.NEVER]) > 4
    assert offered[world.NEVER] <= coats, "the sizes of its kind"


@pytest.mark.slow
def test_no_file_of_the_fit_head_is_a_pickle(trained: Config) -> None:
    assert pickles.found(trained.at("fit_head")) == []


@pytest.mark.parametrize("shuffled", [False, True])
def test_shuffled_feedback_foretells_nothing(tmp_path: Path, shuffled: bool) -> None:
    """Trained as a worker does, without Ray; the same steps on feedback as it was find what there is."""
    world.make(tmp_path, 400, shuffled=shuffled)
    h, of = histories.load(tmp_path), worn.load(tmp_path)
    torch.manual_seed(0)
    module, asked, parts = fit.build(h, of, fit.content(tmp_path), OPTIONS)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for rows in np.array_split(np.random.default_rng(0).permutation(np.tile(parts.train, 4)), 60):
        optimizer.zero_grad()
        module(asked.batch(rows), OPTIONS, len(parts.train)).backward()
        optimizer.step()
    found = macro_auc(of.fits[parts.test], fit.chances(module.eval(), asked, parts.test))
    assert abs(found - 0.5) < 0.06 if shuffled else found > 0.8


def test_a_shop_without_feedback_gets_one_sentence(tmp_path: Path) -> None:
    config = _config(tmp_path)
    world.make(config.root, 5)
    from rec import dataset

    rows = dataset.read(config.at("events"), INTERACTIONS).to_pylist()
    world.write(config.root, INTERACTIONS, [{**row, "fit": None} for row in rows])
    with pytest.raises(ArtifactError, match=r"no event with both a size and how it fitted: map the columns `size` and"):
        fit.run(config)


def test_without_profiles_and_with_sizes_that_are_no_numbers_the_head_answers(tmp_path: Path) -> None:
    world.make(tmp_path, 30)
    h, of = histories.load(tmp_path), worn.load(tmp_path)
    bare = replace(h, profiles=h.profiles[:, :0], profile_names=[])
    names = replace(of, sizes=[f"size {size}" for size in of.sizes], numbers=np.full(len(of.sizes), np.nan, np.float32))
    module, asked, parts = fit.build(bare, names, fit.content(tmp_path), OPTIONS.model_copy(update={"history": 0}))
    made = fit.chances(module.eval(), asked, parts.test)
    np.testing.assert_allclose(made.sum(axis=1), 1, atol=1e-5)
