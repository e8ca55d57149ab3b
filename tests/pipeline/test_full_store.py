"""An object store that others have filled: work goes on by way of the disk, and without one it ends cleanly."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rec import artifact, runtime
from tests.item_tower import catalogue
from tests.pipeline.heads import head

STORE_BYTES = 80 * 2**20
FILL = """
import sys
import numpy as np
import ray
from rec import runtime
runtime.start(1)
held = [ray.put(np.zeros(mib << 20, np.uint8)) for mib in (24, 16, 16, 8, 8, 4, 2)]
print("full", flush=True)
sys.stdin.read()
"""


@contextmanager
def small(folder: Path, environment: dict[str, str], *options: str) -> Iterator[dict[str, str]]:
    """The environment of jobs on a Ray with a small object store."""
    with head(folder, environment, f"--object-store-memory={STORE_BYTES}", *options) as (within, address):
        yield {**within, "RAY_ADDRESS": address}


@contextmanager
def filled(environment: dict[str, str]) -> Iterator[None]:
    """Within it another job holds nearly all of the store."""
    with subprocess.Popen(
        [sys.executable, "-c", FILL], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "full\n"
        yield
        other.stdin.close()


def encode(folder: Path, store: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The job on a store of its own, with actors and with blocks that go through the object store."""
    for name in ("vocabulary", "tensors"):
        if not (store / "catalogue" / name).exists():
            (store / "catalogue").mkdir(parents=True, exist_ok=True)
            (store / "catalogue" / name).symlink_to(folder / "catalogue" / name)
    command = [sys.executable, "jobs/encode.py", "--recipe", str(folder / "catalogue.toml")]
    options = [f"store={store}", "text.batch_size=16"]
    return subprocess.run(
        [*command, *(word for each in options for word in ("--set", each))],
        cwd=Path(runtime.__file__).parents[1], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def states(store: Path) -> str:
    manifest = artifact.peek(store / "catalogue" / "text_states")
    assert manifest is not None, f"no states in {store}"
    return manifest.content_hash


@pytest.mark.slow
def test_a_full_object_store(tmp_path: Path, environment_of_jobs: dict[str, str]) -> None:
    folder, spilt, stopped = tmp_path / "made", tmp_path / "spilt", tmp_path / "stopped"
    folder.mkdir()
    catalogue.write(folder, 1_800)
    with small(tmp_path, environment_of_jobs) as there, filled(there):
        job = encode(folder, spilt, there)
        assert job.returncode == 0, job.stderr[-3_000:]

    nowhere = {"RAY_local_fs_capacity_threshold": "0.00001"}  # any disk is fuller
    no_spilling = "--system-config=" + json.dumps({"automatic_object_spilling_enabled": False})
    with small(tmp_path, {**environment_of_jobs, **nowhere}, no_spilling) as there:
        with filled(there):
            job = encode(folder, stopped, there)
        assert job.returncode == 2, job.stderr[-3_000:]
        (said,) = [line for line in job.stderr.splitlines() if line.startswith("error: ")]
        assert said.startswith("error: Ray's object store is full and its disk takes no more of it (")
        assert said.endswith("and run again: finished work is kept")
        assert "Traceback" not in job.stderr.rpartition("error: ")[2]
        assert not (stopped / "catalogue" / "text_states").exists()
        job = encode(folder, stopped, there)
        assert job.returncode == 0, job.stderr[-3_000:]
    assert states(stopped) == states(spilt)
