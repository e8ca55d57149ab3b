"""Training on Ray Train: checkpoints, what a killed worker leaves behind, and errors."""

import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import ray.train
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from rec.config import Train
from rec.errors import ArtifactError, ConfigError, TrainingError
from rec.train import checkpoint, curves, ddp, trainers
from rec.train.checkpoint import Position
from tests.train import loops
from tests.train.in_process import in_process


@pytest.mark.long
@pytest.mark.usefixtures("ray_local")
def test_a_killed_worker_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    """In the middle of its third epoch, which has a checkpoint in its middle."""
    two = Train(num_workers=2, cpus_per_worker=1, max_failures=1, epochs=4, batch_size=2)
    often, before = two.model_copy(update={"checkpoint_minutes": 0}), signal.getsignal(signal.SIGINT)
    flag, steps = tmp_path / "killed", {name: tmp_path / name for name in ("calmly", "shakily")}
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm" / ddp.SNAPSHOT).write_text('{"torn', encoding="utf-8")  # a kill while Ray wrote: starts over
    given = {"train": two.model_dump(), "kill": "", "steps": str(steps["calmly"])}
    calm = ddp.fit(loops.loop, two, "calm", given, tmp_path)
    kill = {
        "train": often.model_dump(),
        "kill": str(flag),
        "at": 25,
        "run": str(tmp_path / "shaken"),
        "steps": str(steps["shakily"]),
    }
    shaken = ddp.fit(loops.loop, often, "shaken", kill, tmp_path)
    assert flag.exists(), "no worker was killed"
    all_of = [f"{epoch} {step}" for epoch in range(4) for step in range(32)]
    assert steps["calmly"].read_text().split("\n")[:-1] == all_of
    again_from, killed_at = all_of.index(f"2 {ddp.BLOCK_STEPS}"), all_of.index("2 25")
    assert steps["shakily"].read_text().split("\n")[:-1] == all_of[: killed_at + 1] + all_of[again_from:]
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE):
        assert (shaken / name).read_bytes() == (calm / name).read_bytes(), name
    assert checkpoint.read(calm).history[-1]["loss"] > 0
    assert len([path for path in (tmp_path / "calm").iterdir() if path.is_dir()]) == 2, "the last two are kept"
    assert {path.suffix for path in calm.iterdir()} == {".safetensors", ".json"}, "no pickle"

    again = ddp.fit(loops.loop, two, "calm", given, tmp_path)
    assert again == calm, "a finished run is found again, not trained again"
    assert signal.getsignal(signal.SIGINT) is before, "Ctrl-C still ends the job"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_what_a_user_can_mend_reaches_the_user(tmp_path: Path) -> None:
    train = Train(num_workers=1, cpus_per_worker=1, max_failures=1)
    with pytest.raises(ArtifactError, match="text_states is missing: run its job"):
        ddp.fit(loops.refuse, train, "refuse", {"starts": str(tmp_path / "starts")}, tmp_path)
    assert (tmp_path / "starts").read_text() == "started\n", "it would only be met again"
    with pytest.raises(
        TrainingError, match=r"out of memory \(.*can't allocate memory.*\): lower tower\.batch_size, with which"
    ):
        ddp.fit(loops.too_large, train, "large", {}, tmp_path, options="tower")
    with pytest.raises(
        TrainingError, match=r"died 2 times, .*Where memory ran out, .* lower rooms; nothing of it was saved yet"
    ):
        ddp.fit(loops.killed, train, "killed", {}, tmp_path, room="rooms")
    with pytest.raises(
        ConfigError, match=r"train\.num_workers x train\.cpus_per_worker is 18, but Ray was started with 4: lower"
    ):
        ddp.fit(loops.loop, Train(num_workers=9), "large", {}, tmp_path)
    with pytest.raises(ConfigError, match=r"train\.use_gpu=false"):
        ddp.fit(loops.loop, Train(num_workers=4, cpus_per_worker=1, use_gpu=True), "gpu", {}, tmp_path)


def test_a_sweep_leaves_only_the_run_that_goes_on(tmp_path: Path) -> None:
    names = ["ranker-1", "ranker-1-inputs", "ranker-2", "ranker-2-inputs", "user_tower-3"]
    for name in names:
        (tmp_path / name / "checkpoint").mkdir(parents=True)
    ddp.sweep(tmp_path, "ranker", keep="ranker-2")
    assert sorted(path.name for path in tmp_path.iterdir()) == names[2:]
    ddp.sweep(tmp_path, "ranker")
    assert [path.name for path in tmp_path.iterdir()] == ["user_tower-3"]
    ddp.sweep(tmp_path / "never made", "ranker")


def test_a_checkpoint_restores_weights_optimizer_and_position(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer)
    kept = Position(2, [{"loss": 0.9}, {"loss": 0.5}], 40, {"loss": 0.1 + 0.2})
    checkpoint.save(tmp_path, model, optimizer, kept)
    step(model, optimizer)
    other, restored = make()
    assert checkpoint.load(tmp_path, other, restored) == checkpoint.read(tmp_path) == kept
    assert restored.param_groups[0]["betas"] == (0.8, 0.9)
    step(other, restored)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    state = json.loads((tmp_path / checkpoint.STATE).read_text())
    earlier = {name: value for name, value in state.items() if name not in ("history", "step", "sums")}
    (tmp_path / checkpoint.STATE).write_text(json.dumps({**earlier, "metrics": {"loss": 0.25}}))
    assert checkpoint.read(tmp_path) == Position(2, [{"loss": 0.25}]), "a run of an earlier version goes on"


def toy(folder: Path, name: str, minutes: float = 10, bad: int = -1) -> Path:
    """The last checkpoint of two epochs of `loops.draws` in this process."""
    train = Train(epochs=2, cpus_per_worker=1, checkpoint_minutes=minutes)
    given = {"train": train.model_dump(), "drawn": str(folder / f"{name}.txt"), "bad": bad}
    with in_process(loops.draws):
        return ddp.fit(loops.draws, train, name, given, folder)


def kept(run: Path) -> list[tuple[int, int]]:
    """Epochs and steps of the run's checkpoints."""
    found = [checkpoint.read(path) for path in sorted(run.glob("checkpoint_*"))]
    return [(each.epoch, each.step) for each in found]


def test_no_two_blocks_draw_the_same_and_a_stopped_run_draws_what_a_calm_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = toy(tmp_path, "calm")
    with monkeypatch.context() as patch:
        loops.interrupted_at(1, 20, patch)
        with pytest.raises(KeyboardInterrupt):
            toy(tmp_path, "shaken", minutes=0)
    shaken = toy(tmp_path, "shaken", minutes=0)
    drawn = (tmp_path / "calm.txt").read_text().splitlines()
    assert len({line.split()[2] for line in drawn}) == 100
    assert (tmp_path / "shaken.txt").read_text().splitlines() == drawn
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE):
        assert (shaken / name).read_bytes() == (calm / name).read_bytes(), name


def test_checkpoints_within_an_epoch_are_as_far_apart_as_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy(tmp_path, "seldom")
    assert kept(tmp_path / "seldom") == [(1, 0), (2, 0)]
    toy(tmp_path, "often", minutes=0)
    assert kept(tmp_path / "often") == [(0, 20), (0, 40), (1, 0), (1, 20), (1, 40), (2, 0)]
    clock = itertools.count()
    monkeypatch.setattr(ddp.time, "monotonic", lambda: float(next(clock)))  # a second and a bit for each step
    toy(tmp_path, "sometimes", minutes=0.5)
    assert kept(tmp_path / "sometimes") == [(0, 40), (1, 0), (1, 40), (2, 0)]


def test_no_checkpoint_is_written_after_a_loss_that_is_no_number(tmp_path: Path) -> None:
    said = (
        "the toy's loss in epoch 1 is no number: try again; run again with the same options it goes on after step 20 of"
    )
    with pytest.raises(TrainingError, match=said):
        toy(tmp_path, "bad", minutes=0, bad=30)
    assert kept(tmp_path / "bad") == [(0, 20)]
    toy(tmp_path, "bad", minutes=0)
    assert kept(tmp_path / "bad")[-1] == (2, 0)


def test_curves_are_drawn_now_and_then_and_never_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(trainers.time, "monotonic", lambda: now[0])
    model = nn.Linear(2, 1)
    callback = trainers.Curves(tmp_path)

    def told(seconds: float, *epochs: dict[str, float], step: int = 0) -> int | None:
        """Epochs on the page after a report at a time."""
        now[0] = seconds
        folder = tmp_path / f"checkpoint_{seconds}"
        folder.mkdir()
        position = Position(len(epochs), list(epochs), step)
        checkpoint.save(folder, model, torch.optim.AdamW(model.parameters()), position)
        callback.after_report(None, [{} if step else epochs[-1]], ray.train.Checkpoint.from_directory(folder))
        page = tmp_path / curves.JSON
        return len(json.loads(page.read_text())["epochs"]) if page.exists() else None

    each = {"loss": 1.0}
    assert told(0, each) is None
    assert told(29, each, each) is None
    assert told(31, each, each, step=20) is None, "nothing new to draw"
    assert told(32, each, each, each) == 3
    assert "<svg" in (tmp_path / curves.PAGE).read_text()
    assert told(33, each, each, each, each) == 3
    monkeypatch.setattr(curves, "page", lambda *_: 1 / 0)
    assert told(99, each, each, each, each) == 4
    assert "were not drawn: division by zero" in caplog.text


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(4, 300), batch_size=st.integers(2, 64), workers=st.integers(1, 4), seed=st.integers(0, 99))
def test_workers_share_every_global_batch_and_no_row_twice(rows: int, batch_size: int, workers: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddp, "world_size", lambda: workers)
        parts = []
        for rank in range(workers):
            patch.setattr(ddp, "rank", lambda rank=rank: rank)
            parts.append(ddp.batches(rows, batch_size, np.random.default_rng(seed)))
        patch.setattr(ddp, "world_size", lambda: 1)
        patch.setattr(ddp, "rank", lambda: 0)
        alone = ddp.batches(rows, batch_size, np.random.default_rng(seed))
    assert len({len(step) for part in parts for step in part}) == 1, "ranks must have batches of one size"
    together = [np.concatenate(step) for step in zip(*parts, strict=True)]
    drawn = np.concatenate(together)
    assert len(set(drawn.tolist())) == len(drawn)
    assert all(len(step) <= max(batch_size, workers) for step in together)
    assert rows - len(drawn) < len(together) * workers + len(together), "only what fills no batch is left out"
    if len(drawn) == sum(map(len, alone)) and len(together) == len(alone):
        assert all((step == other).all() for step, other in zip(together, alone, strict=True))


def test_too_few_rows_for_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddp, "world_size", lambda: 4)
    monkeypatch.setattr(ddp, "rank", lambda: 0)
    with pytest.raises(ConfigError, match=r"3 training rows are too few for 4 workers"):
        ddp.batches(3, 8, np.random.default_rng(0))


def test_a_run_whose_controller_is_lost_goes_on_as_often_as_workers_may_fail(tmp_path: Path) -> None:
    tries: list[int] = []
    snapshot = tmp_path / "run" / ddp.SNAPSHOT

    class Lost:
        def fit(self) -> str:
            tries.append(1)
            assert not snapshot.exists(), "what the try before was writing is gone"
            if len(tries) < 3:
                snapshot.parent.mkdir()
                snapshot.write_text('{"torn', encoding="utf-8")
                raise ray.train.ControllerError(RuntimeError("its node is gone"))
            return "the result"

    assert ddp._fitted(Lost, snapshot.parent, 2) == "the result"
    tries.clear()
    with pytest.raises(ray.train.ControllerError, match="its node is gone"):
        ddp._fitted(Lost, snapshot.parent, 1)
    assert len(tries) == 2
    assert ddp.position(snapshot.parent) == Position(0, []), "of the torn list: the sentence is told"
