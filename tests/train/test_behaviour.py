"""The item tower's behaviour stage: what it learns of products nobody chose, and that a kill does not show."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rec import artifact, config
from rec.config import Config, ItemTower, Train
from rec.errors import ConfigError
from rec.models import item_tower
from rec.models.item_inputs import ItemInputs
from rec.models.item_tower import Shape
from rec.train import behaviour, copurchase, ddp, item
from tests.item_tower import catalogue
from tests.item_tower.products import Product, inputs
from tests.train import loops
from tests.train.in_process import in_process
from tests.train.test_copurchase import histories

KINDS, EACH = 8, 16
COUNT = KINDS * EACH


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's surroundings without Ray: one worker, no checkpoints."""

    def epochs(
        _: nn.Module, __: torch.optim.Optimizer, ___: Train, *, what: str, epochs: int, seed: int, remedy: str
    ) -> Iterator[ddp.Epoch]:
        for number in range(epochs):
            torch.manual_seed(number)
            yield ddp.Epoch(number, epochs, np.random.default_rng([seed, number]))

    monkeypatch.setattr(ddp, "distribute", lambda module: module)
    monkeypatch.setattr(ddp, "checkpointed_epochs", epochs)
    monkeypatch.setattr(ddp, "rank", lambda: 0)
    monkeypatch.setattr(ddp, "world_size", lambda: 1)


def goods() -> ItemInputs:
    """Products of kind i // EACH, which only an STD value tells, and noise in everything else."""
    rng = np.random.default_rng(0)
    noise = zip(rng.integers(10, 40, COUNT).tolist(), rng.integers(1, 30, COUNT).tolist(), strict=True)
    return inputs(
        [Product([(1, 1 + row // EACH), (2, std)], [(3, re)], 4, seed=row) for row, (std, re) in enumerate(noise)]
    )


def baskets(hidden: np.ndarray) -> list[list[int]]:
    """Shoppers who take two kinds in turn that go together, as trousers and belts do, and nothing that is hidden."""
    rng = np.random.default_rng(1)
    users = []
    for _ in range(300):
        kinds = rng.integers(KINDS // 2) * 2 + np.arange(8) % 2
        items = kinds * EACH + rng.integers(0, EACH, 8)
        users.append([int(item) for item in items if not hidden[item]])
    return users


@pytest.mark.usefixtures("alone")
def test_products_nobody_chose_come_near_to_what_goes_with_their_kind() -> None:
    """Content places a product beside its own kind; what goes with a kind only the pairs of other products say."""
    items = goods()
    hidden = np.arange(COUNT) % 8 == 3
    options = ItemTower.model_validate(
        {
            "feature_dropout": 0.1,
            "token_dropout": 0.2,
            "behaviour": {"epochs": 14, "batch_size": 64, "learning_rate": 1e-2, "window": 1},
        }
    )
    shape = Shape(
        num_keys=6,
        num_std_ids=40,
        num_re_tokens=30,
        text_width=12,
        text_encoder="none",
        width=16,
        heads=2,
        dropout=0.0,
        inputs=("std", "re", "title"),
    )
    torch.manual_seed(0)
    tower = item_tower.ItemTower(shape)
    h = histories(baskets(hidden), COUNT)
    pairs = copurchase.find(h, items.groups, window=1, damping=0.5)
    assert not hidden[pairs.first].any()
    assert not hidden[pairs.second].any()
    kinds = np.arange(COUNT) // EACH
    together = (kinds[:, None] ^ 1) == kinds[None, :]
    before = _near(tower, items, together)[hidden].mean()
    behaviour.train(tower, items, pairs, options, 3, Path("nowhere"))
    after = _near(tower, items, together)[hidden].mean()
    assert before < 0.3, "at random one in seven goes with a product"
    assert after > 0.8


def _near(tower: item_tower.ItemTower, items: ItemInputs, together: np.ndarray) -> np.ndarray:
    """float64[N] share of what goes with each product among the five nearest of other kinds."""
    with torch.inference_mode():
        vectors = tower.eval()(items.batch(np.arange(COUNT)))
    tower.train()
    kinds = np.arange(COUNT) // EACH
    scores = np.where(kinds[:, None] == kinds[None, :], -2, (vectors @ vectors.T).numpy())
    nearest = np.argsort(-scores, axis=1)[:, :5]
    shares: np.ndarray = np.take_along_axis(together, nearest, axis=1).mean(axis=1)
    return shares


def with_behaviour(tree: Config, **options: float) -> Config:
    chosen = tree.item_tower.behaviour.model_copy(update={"epochs": 3, "batch_size": 32, **options})
    short = tree.item_tower.train.model_copy(update={"epochs": 2, "num_workers": 2})
    tower = tree.item_tower.model_copy(update={"behaviour": chosen, "train": short})
    return tree.model_copy(update={"item_tower": tower})


@pytest.mark.long
@pytest.mark.usefixtures("ray_local")
def test_a_killed_stage_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Two workers, one of them killed in the second run; what is finished is found again, and no run is left behind."""
    calm, shaken = (catalogue.shop(tmp_path / name, 64) for name in ("calm", "shaken"))
    with in_process(item.loop):  # the stage before is not at stake
        made = item.run(with_behaviour(calm))
    assert made["pairs"] > 32
    assert made["pair_loss"] > 0
    assert item.run(with_behaviour(calm))["skipped"]
    assert not list(calm.at("runs").iterdir())
    flag = tmp_path / "killed"
    with in_process(item.loop), pytest.MonkeyPatch.context() as patch:
        patch.setattr(behaviour, "loop", loops.KilledOnce(behaviour.loop, flag, made["pairs"] // 32 + 3))
        item.run(with_behaviour(shaken))
    assert flag.exists(), "no worker was killed"
    hashes = [artifact.peek(tree.at(item_tower.KIND)) for tree in (calm, shaken)]
    assert hashes[0] is not None
    assert hashes[1] is not None
    assert hashes[0].content_hash == hashes[1].content_hash
    assert set(hashes[0].inputs) == {"events", "tensors", "vocabulary", "text_states"}


@pytest.mark.long
@pytest.mark.usefixtures("ray_local")
def test_a_stage_that_is_stopped_within_an_epoch_goes_on_there(tmp_path: Path) -> None:
    hashes = []
    for name in ("calm", "shaken"):
        tree = with_behaviour(catalogue.shop(tmp_path / name, 64), batch_size=8, epochs=2)
        train = tree.item_tower.train.model_copy(update={"epochs": 1, "num_workers": 1, "checkpoint_minutes": 0})
        tree = tree.model_copy(update={"item_tower": tree.item_tower.model_copy(update={"train": train})})
        with in_process(item.loop, behaviour.loop):
            if name == "shaken":
                with pytest.MonkeyPatch.context() as patch:
                    loops.interrupted_at(1, 20, patch)
                    with pytest.raises(KeyboardInterrupt):
                        item.run(tree)
            item.run(tree)
        made = artifact.peek(tree.at(item_tower.KIND))
        assert made is not None
        hashes.append(made.content_hash)
    assert hashes[0] == hashes[1]


def test_off_it_changes_no_fingerprint() -> None:
    tree = config.load("demo")
    assert "behaviour" not in tree.item_tower.identity()
    assert "behaviour" not in config.load("demo", ["item_tower.behaviour.window=9"]).item_tower.identity()
    on = config.load("demo", ["item_tower.behaviour.epochs=1"]).item_tower.identity()
    assert on["behaviour"]["epochs"] == 1


def test_a_start_by_choices_reads_events_and_is_another_tower(tmp_path: Path) -> None:
    tree = catalogue.shop(tmp_path, 32)
    short = tree.item_tower.train.model_copy(update={"epochs": 1})
    options = tree.item_tower.model_copy(update={"start": "choices", "train": short})
    chosen = tree.model_copy(update={"item_tower": options})
    with in_process(item.loop):
        made = item.run(chosen)
    found = artifact.peek(chosen.at(item_tower.KIND))
    assert found is not None
    assert "events" in found.inputs
    assert made["pairs"] > 0
    assert options.identity()["behaviour"]["window"] == 5
    with in_process(item.loop):
        item.run(tree.model_copy(update={"item_tower": options.model_copy(update={"start": "texts"})}))
    other = artifact.peek(tree.at(item_tower.KIND))
    assert other is not None
    assert "events" not in other.inputs
    assert other.content_hash != found.content_hash


@pytest.mark.slow
def test_too_few_pairs_are_refused_before_any_training(tmp_path: Path) -> None:
    tree = catalogue.shop(tmp_path, 16)
    with pytest.raises(ConfigError, match=r"which fill no batch of 100000: lower item_tower\.behaviour\.batch_size"):
        item.run(with_behaviour(tree, batch_size=100_000))
