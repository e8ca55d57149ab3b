"""Training windows, and the whole stage on Ray Train: it learns all three inputs, and a resumed run is equal."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec import histories
from rec.config import Config, UserTower, UserTrain
from rec.errors import ArtifactError, TrainingError
from rec.histories import leave_one_out
from rec.models import text_encoder, user_tower
from rec.retrieval import search
from rec.schema import INTERACTIONS
from rec.state import cold_state
from rec.train import curves
from rec.train.sequences import last_windows, windows
from rec.train.user import build, loop, run
from tests.train import loops
from tests.train.in_process import in_process
from tests.user_tower.world import CLUSTERS, PARTY, PER_CLUSTER, START, make, write


def _config(store: Path, **options: object) -> Config:
    train = UserTrain(epochs=12, batch_size=16, learning_rate=3e-3, cpus_per_worker=1)
    tower = UserTower.model_validate({"train": train, "history": 8, "layers": 1, "patience": 0, **options})
    return Config(name="world", store=str(store), item_tower={"width": 16}, user_tower=tower)  # type: ignore[arg-type]


def test_windows_hold_training_events_only_and_know_what_is_said_at_the_target(tmp_path: Path) -> None:
    make(tmp_path, num_users=40)
    h = histories.load(tmp_path)
    split = leave_one_out(h)
    data = windows(h, split.train_end, 4, {PARTY: 1}, exclude_seen=True)
    batch = data.batch(np.arange(len(data.users)))
    assert len(data.users) > len(np.unique(data.users)) == 40  # some have more events than a window
    position, targets = 0, []
    for row, (user, start, end) in enumerate(zip(data.users, data.starts, data.ends, strict=True)):
        events = range(start, end)
        assert h.offsets[user] <= start < end <= split.train_end[user]
        assert batch.sequences.items[row, : len(events) - 1].tolist() == h.items[events[:-1]].tolist()
        assert int(batch.sequences.lengths[row]) == len(events) - 1 <= 4
        for place, event in enumerate(events):
            assert batch.targets[position] == h.items[event]
            assert bool(batch.contexts[position]) == (h.contexts[event] == PARTY)
            if batch.counted[position]:
                targets.append(event)
            if place:
                gap = (h.at[event] - h.at[event - 1]) / 1e6
                assert batch.sequences.gaps_s[row, place - 1].item() == pytest.approx(gap, rel=1e-6)
            position += 1
    assert position == len(batch.targets)
    training = [range(h.offsets[user], split.train_end[user]) for user in range(40)]
    new = [e for events in training for e in events if h.items[e] not in h.items[events.start : e]]
    assert targets == new  # each once, in order, but for those on an item the user had before


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 7))
def test_every_event_of_a_long_history_is_a_target_once(lengths: list[int], history: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    count = int(offsets[-1])
    h = histories.Histories(
        user_ids=[f"u{user}" for user in range(len(lengths))],
        offsets=offsets,
        items=np.arange(count),
        events=np.ones(count, np.int64),
        at=np.arange(count),
        contexts=[""] * count,
        profiles=np.empty((len(lengths), 0), np.float32),
        profile_names=[],
        num_items=count,
        unknown=0,
    )
    data = windows(h, offsets[1:], history, {}, exclude_seen=True)
    assert data.target_counts.tolist() == [1] * count
    assert (data.ends - data.starts <= history + 1).all()
    for user, length in enumerate(lengths):
        found = np.flatnonzero(data.users == user)
        assert len(found) == (-(-max(length - 1, 1) // history) if length else 0)
        if 0 < length <= history + 1:
            assert (data.starts[found[0]], data.ends[found[0]]) == (offsets[user], offsets[user + 1])
            assert bool(data.batch(found).counted.all())
    some = np.flatnonzero(np.array(lengths))
    last = last_windows(h, some, offsets[some + 1], history, {}, exclude_seen=True)
    assert last.ends.tolist() == offsets[some + 1].tolist()
    assert (last.ends - last.starts).tolist() == [min(lengths[user], history + 1) for user in some]


def test_training_windows_and_states_give_the_same_vectors(tmp_path: Path) -> None:
    """What training computes at the last position is what serving computes for the same moment."""
    make(tmp_path, num_users=30)
    h = histories.load(tmp_path)
    split = leave_one_out(h)
    data = windows(h, split.train_end, 8, {}, exclude_seen=False)
    options = _config(tmp_path).user_tower
    torch.manual_seed(0)
    frozen = np.eye(CLUSTERS * PER_CLUSTER, 16, dtype=np.float32) + 0.1
    model = build(data, frozen, np.zeros((1, 4), np.float32), options, "minilm").eval()
    batch = data.batch(np.arange(len(data.users)))
    with torch.inference_mode():
        flat = model.users(batch, model.table(batch.sequences.items, model.tower.adapt), 0.0)
    last = (batch.sequences.starts + batch.sequences.lengths).numpy()
    ends = data.ends - 1
    states = [histories.state(h, int(u), int(e), 8, int(h.at[e]), "") for u, e in zip(data.users, ends, strict=True)]
    served = model.tower.attach(model.export()).vectors(states, None)
    np.testing.assert_allclose(served, flat[last].numpy(), atol=2e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Config:
    config = _config(tmp_path_factory.mktemp("store"))
    make(config.root)
    result = run(config)
    assert result["epochs"] == 12
    return config


@pytest.fixture
def here() -> Iterator[None]:
    """Trainings run in this process."""
    with in_process(loop):
        yield


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local", "here")
def test_training_stops_when_nothing_gets_better_and_keeps_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = UserTrain(epochs=12, batch_size=16, learning_rate=1e-9, cpus_per_worker=1)
    config = _config(tmp_path, train=still, patience=2)
    make(config.root)
    made = run(config)
    epochs = json.loads((config.at("user_tower") / curves.JSON).read_text())["epochs"]
    assert (made["epochs"], made["best_epoch"]) == (len(epochs), 1) == (3, 1)
    assert made["metrics"] == epochs[0]
    assert {"loss", "recall10", "ndcg10"} == set(epochs[0])
    assert "recall10" in (config.at("user_tower") / curves.PAGE).read_text()
    killed = _config(tmp_path / "killed", train=still, patience=2)
    make(killed.root)
    with monkeypatch.context() as patch:
        patch.setattr(curves, "write", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
    assert not killed.at("user_tower").exists()
    again = run(killed)  # the stopped run is found and not trained on
    assert {name: again[name] for name in ("epochs", "best_epoch", "metrics")} == {
        name: made[name] for name in ("epochs", "best_epoch", "metrics")
    }
    for name in ("user_tower.safetensors", "item_vectors.safetensors"):
        assert (killed.at("user_tower") / name).read_bytes() == (config.at("user_tower") / name).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local", "here")
def test_a_training_that_is_stopped_within_an_epoch_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = UserTrain(epochs=2, batch_size=4, learning_rate=3e-3, cpus_per_worker=1, checkpoint_minutes=0)
    calm, shaken = (_config(tmp_path / name, train=often) for name in ("calm", "shaken"))
    for config in (calm, shaken):
        make(config.root)
    run(calm)
    with monkeypatch.context() as patch:
        loops.interrupted_at(1, 20, patch)
        with pytest.raises(KeyboardInterrupt):
            run(shaken)
    run(shaken)
    for name in ("user_tower.safetensors", "item_vectors.safetensors", curves.JSON):
        assert (shaken.at("user_tower") / name).read_bytes() == (calm.at("user_tower") / name).read_bytes()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_remedy(tmp_path: Path, ray_local: None) -> None:
    wild = UserTrain(epochs=3, batch_size=16, learning_rate=1e30, max_failures=0, cpus_per_worker=1)
    config = _config(tmp_path, train=wild)
    make(config.root, num_users=60)
    with pytest.raises(TrainingError, match=r"loss in epoch \d is no number: lower user_tower\.train\.learning_rate"):
        run(config)
    assert not config.at("user_tower").exists()


@pytest.mark.slow
def test_the_stage_is_done_once_and_leaves_no_checkpoints(trained: Config) -> None:
    (trained.at("runs") / "user_tower-0123").mkdir()  # another option's run that was killed
    train = trained.user_tower.train.model_copy(update={"max_failures": 7})
    other = trained.model_copy(update={"user_tower": trained.user_tower.model_copy(update={"train": train})})
    assert run(trained)["skipped"]
    assert run(other)["skipped"]
    assert list(trained.at("runs").iterdir()) == []


@pytest.mark.slow
def test_the_tower_recovers_what_was_planted(trained: Config) -> None:
    """Cluster from the behaviour, occasion from the context, half of the cluster from the height."""
    tower = user_tower.load(trained.at("user_tower"))
    h = histories.load(trained.root)
    text = text_encoder.load(trained.text)
    vectors = tower.item_vectors.numpy()
    users = np.arange(len(h.user_ids))
    ends = h.offsets[1:] - 1
    for said, right in (("", lambda u: u % 4), (PARTY, lambda u: 5)):
        states = [histories.state(h, int(u), int(e), 8, int(h.at[e]), said) for u, e in zip(users, ends, strict=True)]
        rows, _ = search(tower.vectors(states, text.embed([said] * len(states))), vectors, 1)
        hits = [row // PER_CLUSTER == right(u) for u, row in zip(users, rows[:, 0], strict=True)]
        assert np.mean(hits) > 0.75, said  # one cluster in six by chance
    heights = np.array([[150.0], [195.0]], np.float32)
    cold = [replace(cold_state(1), profile=height) for height in heights]
    rows, _ = search(tower.vectors(cold, None), vectors, 5)
    taller = (rows % PER_CLUSTER >= 5).mean(axis=1)
    assert taller[0] < 0.4 < 0.6 < taller[1]


@pytest.mark.slow
def test_a_cold_item_keeps_the_item_towers_vector(trained: Config) -> None:
    from rec.train.user import item_vectors

    tower = user_tower.load(trained.at("user_tower"))
    frozen = item_vectors(trained.root, 16)
    moved = np.linalg.norm(tower.item_vectors.numpy() - frozen, axis=1)
    h = histories.load(trained.root)
    warm = np.zeros(len(frozen), bool)
    warm[h.items[histories.training_events(h)]] = True
    assert moved[~warm].max() < 1e-6
    assert moved[warm].max() > 0.05
    assert (~warm).sum() >= PER_CLUSTER


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_the_same_seed_gives_the_same_bytes_in_any_process(trained: Config, tmp_path: Path) -> None:
    again = _config(tmp_path)
    make(again.root)
    run(again)
    for name in ("user_tower.safetensors", "item_vectors.safetensors", "user_tower.json"):
        assert (again.at("user_tower") / name).read_bytes() == (trained.at("user_tower") / name).read_bytes()


def test_events_on_unknown_products_only_are_one_clear_sentence(tmp_path: Path) -> None:
    config = _config(tmp_path)
    make(config.root, num_users=3)
    write(config.root, INTERACTIONS, [{"user_id": "u", "product_id": "gone", "event": "view", "at": START}])
    with pytest.raises(ArtifactError, match=r"no event on a known product \(1 on unknown ones\)"):
        run(config)
