"""Training on Ray Train: checkpoints, what a killed worker leaves behind, and errors."""

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
from rec.train import checkpoint, curves, ddp
from rec.train.checkpoint import Position
from tests.train import loops


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
    assert "epoch" in (tmp_path / "calm" / curves.PAGE).read_text(), "the curves are there before the end"
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
