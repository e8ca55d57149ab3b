"""A training on three Ray nodes of this machine, of which the one that trains is killed.

A process of its own, as another one may have a Ray already.

    python -m tests.evaluate.loses_a_node JOBS RECIPE STORE
"""

import sys
import time
from pathlib import Path

from rec.evaluate.local_nodes import LONG_S, Job, Nodes
from rec.train import ddp


def main(jobs: str, recipe: str, store: str) -> None:
    """Kill when there is a checkpoint to go on from."""
    with (
        Nodes() as nodes,
        Job(Path(jobs), recipe, []).started("pretrain.py", Path(store), RAY_ADDRESS=nodes.address) as running,
    ):
        deadline = time.monotonic() + LONG_S
        while not any(Path(store).glob(f"*/runs/item_tower-*/{ddp.SNAPSHOT}")):
            assert running.process.poll() is None, "it was over too soon"
            assert time.monotonic() < deadline, "it did not begin"
            time.sleep(0.1)
        nodes.lose("RayTrainWorker")
        print(running.result()["item_tower"])


if __name__ == "__main__":
    main(*sys.argv[1:])
