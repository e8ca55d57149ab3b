"""An object store that others have filled: a job stops with one sentence, and goes on when there is room again."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from rec import artifact
from rec.errors import RecError
from rec.evaluate.local_nodes import Job, Running
from rec.models.item_inputs import TEXT_STATES
from rec.partial_array import BEGUN, DONE
from tests.item_tower import catalogue

JOBS = Path(__file__).resolve().parents[2] / "jobs"
STORE_BYTES = 80 * 2**20
NOWHERE_ELSE = {
    "automatic_object_spilling_enabled": False,
    "local_fs_capacity_threshold": 1e-5,  # any disk is fuller
    "oom_grace_period_s": 0,
}
"""What Ray is told, so that no object goes to the disk."""
LONG_S = 300.0
FILL = """
import sys, threading, time
import numpy as np
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from rec import runtime

runtime.start(1)
print("ready", flush=True)
sys.stdin.readline()
held = []

def fill(size):
    try:
        while True:
            held.append(ray.put(np.zeros(size, np.uint8)))
    except (ObjectStoreFullError, OutOfDiskError):
        pass

for size in (2**24, 2**20, 2**16, 2**12):
    fill(size)
print("full", flush=True)
asked = threading.Thread(target=sys.stdin.readline, daemon=True)
asked.start()
while asked.is_alive():  # what a job gives back is taken too
    fill(2**12)
    time.sleep(0.02)
"""


class Other:
    """Another job of the cluster, which takes all that its object store has."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._hears("ready")

    def fill(self) -> None:
        self._told()
        self._hears("full")

    def end(self) -> None:
        self._told()
        assert self._process.wait(LONG_S) == 0

    def _told(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _hears(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{word}\n"


@contextmanager
def another(environment: dict[str, str]) -> Iterator[Other]:
    with subprocess.Popen(
        [sys.executable, "-c", FILL], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Other(process)
        finally:
            process.kill()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finished(store: Path) -> int:
    """Texts whose states a job that has not ended well has kept."""
    begun = (store / "catalogue" / "runs").glob(f"*/{BEGUN}")
    return sum(int(np.load(file.with_name(DONE)).sum()) for file in begun)


@pytest.mark.slow
@pytest.mark.long
def test_a_full_object_store_stops_a_job_that_goes_on_later(
    tmp_path: Path, environment_of_jobs: dict[str, str]
) -> None:
    calm, store = tmp_path / "calm", tmp_path / "store"
    for folder in (calm, store):
        folder.mkdir()
        catalogue.write(folder, 2_400)
    job = Job(JOBS, str(store / "catalogue.toml"), ["text.batch_size=16"])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_system_config": NOWHERE_ELSE,
        },
    )
    around = {"RAY_ADDRESS": str(cluster.address)}

    def stops(running: Running) -> None:
        with pytest.raises(RecError, match=r"encode\.py ended with code 2"):
            running.result()
        log = (store / "encode.py.log").read_text(encoding="utf-8")
        (said,) = [line for line in log.splitlines() if line.startswith("error: ")]
        assert said.startswith("error: Ray's object store is full and its disk takes no more of it ("), log
        assert said.endswith("and run again: finished work is kept")
        assert "Traceback" not in log.rpartition("error: ")[2]
        assert states(store) is None

    try:
        with another(environment_of_jobs | around) as other:
            with job.started("encode.py", store, **around) as running:
                until(lambda: finished(store) > 0 or running.process.poll() is not None)
                other.fill()
                stops(running)
            kept = finished(store)
            assert kept > 0
            with job.started("encode.py", store, **around) as running:  # the store is full before it begins
                stops(running)
            assert finished(store) == kept
            other.end()
        for folder in (store, calm):
            with job.started("encode.py", folder, **around) as running:
                running.result()
    finally:
        cluster.shutdown()
    made = states(store)
    assert made is not None
    assert made == states(calm)


def states(store: Path) -> str | None:
    """Content hash of the text states."""
    manifest = artifact.peek(store / "catalogue" / TEXT_STATES)
    return None if manifest is None else manifest.content_hash
