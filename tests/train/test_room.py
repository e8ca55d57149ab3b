"""A training on a cluster that has too little room: a node that is late, one that is lost for good, and another one."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from rec import artifact
from rec.evaluate.local_nodes import STORE_BYTES, Job
from rec.models import item_tower
from rec.ports import free
from rec.train import ddp
from tests.item_tower import catalogue

JOBS = Path(__file__).resolve().parents[2] / "jobs"
OPTIONS = ("epochs=8", "num_workers=2", "max_failures=1", "wait_minutes=1")
LONG_S = 300.0

pytestmark = pytest.mark.slow


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.long
def test_a_training_waits_for_room_only_so_long_and_goes_on_when_there_is_some(tmp_path: Path) -> None:
    calm, store = (catalogue.shop(tmp_path / name, 64).root.parent for name in ("calm", "store"))
    job = Job(JOBS, str(store / "catalogue.toml"), [f"item_tower.train.{option}" for option in OPTIONS])
    with job.started("pretrain.py", calm) as running:
        running.result()
    log = store / "pretrain.py.log"
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": free()}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": STORE_BYTES})

    def add() -> Node:
        return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def begun() -> bool:
        return any(store.glob(f"catalogue/runs/item_tower-*/{ddp.SNAPSHOT}"))

    around = {"RAY_ADDRESS": str(cluster.address), "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
    try:
        add()
        with job.started("pretrain.py", store, **around) as running:
            late = (
                "2 workers x 1 CPUs, but there is room for 1 now (the cluster has 1 CPUs, 1 of them free, on 2 nodes)"
            )
            until(lambda: log.exists() and late in log.read_text())
            lost = add()
            until(begun)
            cluster.remove_node(lost, allow_graceful=False)
            assert running.process.wait(LONG_S) == 2
        said = log.read_text()
        assert "waiting for" in said
        told = re.search(
            r"error: 2 workers x 1 CPUs could not be had within 1 minutes: the cluster has 1 CPUs, \d of them free, "
            r"on 2 nodes; add nodes, raise item_tower\.train\.wait_minutes or lower item_tower\.train\.num_workers; "
            r"run again with the same options it goes on after epoch (\d), with others it starts over",
            said,
        )
        assert told is not None, said
        add()
        with job.started("pretrain.py", store, **around) as running:
            running.result()
        assert f"going on after epoch {told[1]} of 8" in log.read_text()
    finally:
        cluster.shutdown()
    made = [artifact.peek(folder / "catalogue" / item_tower.KIND) for folder in (calm, store)]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].content_hash == made[1].content_hash
