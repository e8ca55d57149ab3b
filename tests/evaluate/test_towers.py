"""The user tower beside towers that lack a part of it, on a planted world, and what one user's vector costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rec import histories
from rec.config import Config, UserTower, UserTrain
from rec.evaluate import other_splits, towers, user_speed
from rec.train import user
from tests.train.in_process import in_process
from tests.user_tower.test_user_tower import make_tower
from tests.user_tower.world import make


@pytest.mark.long
def test_what_a_part_is_worth_is_seen(tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    train = UserTrain(epochs=12, batch_size=16, learning_rate=3e-3, cpus_per_worker=1)
    options = UserTower(history=8, layers=1, patience=0, train=train)
    config = Config(name="world", store=str(tmp_path), item_tower={"width": 16}, user_tower=options)  # type: ignore[arg-type]
    make(config.root)
    every = towers.variants
    some = ("as_is", "sasrec", "no-context")
    monkeypatch.setattr(towers, "variants", lambda options, h: {name: every(options, h)[name] for name in some})
    with in_process(user.loop):
        found = towers.measure(config, [config.seed], [0])
        splits = other_splits.measure(config)
    assert config.at("user_tower").is_dir(), "the recipe's own seed is that of its pipeline"
    names = {*some, "popular"}
    assert {name.split(".")[1] for name in found} == names
    for name in names:
        low, high = found[f"world.{name}.n10"]["ci95"]
        assert 0 <= low <= found[f"world.{name}.n10"]["value"] <= high <= 1
    gains = {name: found[f"world.as_is.minus.{name}.n10"] for name in names - {"as_is"}}
    for name, gain in gains.items():
        expected = found["world.as_is.n10"]["value"] - found[f"world.{name}.n10"]["value"]
        assert gain["value"] == pytest.approx(expected, abs=2e-4)
        assert gain["goal"] == 0
    for name in ("no-context", "popular"):  # one event in five goes where only the context says, and taste is planted
        assert gains[name]["ci95"][0] > 0, name
    for split in ("cold-users", "temporal"):
        for name in (f"{split}.tower.hr10", f"{split}.popular.n10", f"{split}.tower.minus.popular.n10"):
            low, high = splits[f"world.{name}"]["ci95"]
            assert low <= splits[f"world.{name}"]["value"] <= high
    assert splits["world.temporal.tower.minus.popular.n10"]["ci95"][0] > 0, "clusters are planted"
    again = towers.measure(config, [config.seed], [0])  # trained before: nothing is timed, all else is the same
    assert again == {name: value for name, value in found.items() if not name.endswith(".minutes")}


def test_splits_are_those_that_the_data_allow(tmp_path: Path) -> None:
    make(tmp_path, num_users=30)
    h = histories.load(tmp_path)
    found = other_splits.holdouts(h, 0)
    assert set(found) == {"cold-users", "temporal"}
    assert len(found["cold-users"].cold_users) == 3
    assert found["temporal"].training.mean() == pytest.approx(0.9, abs=0.05)
    order = np.concatenate([np.arange(count) for count in np.diff(h.offsets)]) * 86_400_000_000
    silent = replace(h, at=order, contexts=[""] * len(h.items), profiles=h.profiles[:, :0], profile_names=[])
    assert other_splits.holdouts(silent, 0) == {}


def test_only_inputs_that_the_data_has_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, num_users=9)
    h = histories.load(tmp_path)
    assert set(towers.variants(UserTower(), h)) == {"as_is", "text", "sasrec", "no-context", "no-profile"}
    assert set(towers.variants(UserTower(inputs=["behaviour"]), h)) == {"as_is", "text", "sasrec"}
    alone = towers.variants(UserTower(inputs=["profile"]), h)
    assert set(alone) == {"as_is", "text", "sasrec"}
    assert not alone["sasrec"].content
    assert alone["text"].delta_norm == 0
    assert "text" not in towers.variants(UserTower(delta_norm=0), h), "that one is as_is"


def test_what_a_vector_costs_is_a_time_for_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_speed, "CALLS", 20)
    monkeypatch.setattr(user_speed, "BATCHES", 5)
    found = user_speed.measure(make_tower(), 100, 0)
    assert set(found) == {"user_tower.ms", "user_tower.batch64.ms"}
    alone, together = (found[name]["value"] for name in ("user_tower.ms", "user_tower.batch64.ms"))
    assert 0 < together < alone
    assert found["user_tower.ms"]["ci95"][0] <= alone <= found["user_tower.ms"]["ci95"][1]
    assert np.isfinite(alone)
