"""`jobs/pretrain.py` runs three ways with the same result: plain, as a packed Ray job, and literally. And tokens."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from rec import artifact, encode
from tests.item_tower import catalogue
from tests.pipeline.heads import head
from tests.train.in_process import data_in_process


def _ended_well(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3_000:]}\n{done.stderr[-3_000:]}"
    return done.stdout


def _tower_hash(store: Path) -> str:
    manifest = artifact.peek(store / "demo" / "item_tower")
    assert manifest is not None, f"no item tower in {store}"
    return manifest.content_hash


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_pretrain_runs_three_ways_with_the_same_result(
    checkout: Path, tmp_path: Path, environment_of_jobs: dict[str, str]
) -> None:
    tree = catalogue.write(tmp_path, 96)
    with data_in_process():
        encode.run(tree)
    made = (
        (tmp_path / "catalogue.toml")
        .read_text()
        .replace(f'store = "{tmp_path}"', "")
        .replace("epochs = 30", "epochs = 2")
    )
    (checkout / "rec" / "recipes" / "demo.toml").write_text(made.replace('name = "catalogue"', 'name = "demo"'))
    plain, packed, literal = tmp_path / "plain", tmp_path / "packed", checkout / ".rec"
    for store in (plain, packed, literal):
        for name in ("vocabulary", "tensors", "text_states"):
            shutil.copytree(tree.at(name), store / "demo" / name)
    job = ["python", "jobs/pretrain.py"]
    alone = {**environment_of_jobs, "PYTHONPATH": str(checkout)}

    output = _ended_well([*job, "--set", f"store={plain}"], checkout, alone)
    assert json.loads(output.splitlines()[-1])["item_tower"] == str(plain / "demo" / "item_tower")

    with head(checkout, alone) as (cluster, _):
        options = ["--recipe", "demo", "--set", f"store={packed}"]
        _ended_well(["ray", "job", "submit", "--working-dir", ".", "--", *job, *options], checkout, cluster)
        _ended_well(["ray", "job", "submit", "jobs/pretrain.py"], checkout, cluster)

    assert len({_tower_hash(store) for store in (plain, packed, literal)}) == 1
    assert os.access(checkout / "jobs" / "pretrain.py", os.X_OK)


@pytest.mark.slow
def test_a_wrong_token_is_said_before_any_work(
    checkout: Path, tmp_path: Path, environment_of_jobs: dict[str, str]
) -> None:
    store = tmp_path / "store"
    command = ["python", "jobs/pipeline.py", "--set", f"store={store}"]
    with head(checkout, {**environment_of_jobs, "PYTHONPATH": str(checkout)}) as (cluster, address):
        environment = {**cluster, "RAY_ADDRESS": address, "RAY_AUTH_TOKEN": "another" * 8}
        job = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert job.returncode == 2, job.stderr[-2_000:]
    said = job.stderr.splitlines()[-1]
    assert said.startswith("error: Ray does not start (Failed to connect to Ray cluster"), said
    assert "compare the token (RAY_AUTH_TOKEN, " in said
    assert "another" not in job.stderr + job.stdout
    assert "stage 1/" not in job.stderr
    assert [path.name for path in store.rglob("*") if path.is_file()] == [artifact.LOCK]


@pytest.mark.slow
def test_a_local_ray_needs_no_token(tmp_path: Path, checkout: Path, environment_of_jobs: dict[str, str]) -> None:
    """And says nothing of one."""
    given = {name: value for name, value in environment_of_jobs.items() if not name.startswith("RAY_AUTH")}
    command = ["python", "-c", "from rec import runtime; runtime.start(1)"]
    environment = {**given, "HOME": str(tmp_path), "PYTHONPATH": str(checkout)}
    job = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stderr[-2_000:]
    assert "token" not in (job.stdout + job.stderr).lower()
