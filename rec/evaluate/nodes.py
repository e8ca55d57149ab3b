"""Nodes of a Ray cluster that die and come: three on this machine, as processes, and the pipeline of a recipe on them.

    STAGE.killed           nodes killed with SIGKILL (raylet and all its workers) while that stage's work ran on them
    STAGE.seconds          the stage, and `alone` it without a cluster and without a loss
    artifacts.differing    of the artifacts of `artifacts.compared`, those that are not what the undisturbed run made
    serving.failed         answers other than 200 and 503 while a node that held replicas died
    serving.refused        answers that were 503
    serving.degraded       answers that did without a stage
    serving.recovery_s     from the kill until every deployment had all its replicas again
    autoscaler.peak        nodes at once beside the head while the item tower trained on a cluster that had none
    autoscaler.left        and some time after it

The head is not killed: `cluster/README.md` says what a lost head costs.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rec import artifact, postgres
from rec.evaluate.autoscaling import scaled
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.local_nodes import Job, Nodes
from rec.evaluate.node_loss import served

STAGES = {"enrich": "MapWorker", "pretrain": "RayTrainWorker", "train_user": "RayTrainWorker"}
"""By stage, the class of the actors whose node is killed."""
COMPARED = ("enriched", "vocabulary", "tensors", "item_tower", "vectors", "user_tower", "samples", "ranker")

log = logging.getLogger(__name__)


def measure(jobs: Path, recipe: str, overrides: Sequence[str], *, serve_s: float) -> Figures:
    """All figures; `jobs` is the folder of the job files. Raises RecError where the drill itself cannot go on."""
    with tempfile.TemporaryDirectory(prefix="rec-nodes-") as folder:
        alone, apart = Path(folder) / "alone", Path(folder) / "apart"
        job = Job(jobs, recipe, overrides)
        try:
            with job.started("pipeline.py", alone) as running:
                before = running.result()["seconds"]
            with Nodes() as nodes:
                with job.started("pipeline.py", apart, RAY_ADDRESS=nodes.address) as running:
                    killed = {stage: nodes.kill(running, stage, actor) for stage, actor in STAGES.items()}
                    after = running.result()["seconds"]
                figures = served(nodes, job, apart, serve_s)
            hashes = [{kind: _hash(store, kind) for kind in COMPARED} for store in (alone, apart)]
            figures |= scaled(job, apart)
        finally:
            for store in (alone, apart):
                postgres.stop_embedded(store)
        for stage, count in killed.items():
            figures[f"{stage}.killed"] = figure(count, "nodes", goal=1)
            figures[f"{stage}.seconds"] = figure(round(after[stage], 1), "s")
            figures[f"{stage}.alone"] = figure(round(before[stage], 1), "s")
        differing = [kind for kind in COMPARED if len({each[kind] for each in hashes}) > 1]
        for kind in differing:
            log.warning("%s is not what the undisturbed run made", kind)
        figures["artifacts.compared"] = figure(len(COMPARED), "artifacts")
        figures["artifacts.differing"] = figure(len(differing), "artifacts", goal=0)
        return figures


def _hash(store: Path, kind: str) -> str:
    (folder,) = store.glob(f"*/{kind}")
    manifest = artifact.peek(folder)
    assert manifest is not None, f"the pipeline ended without {folder}"
    return manifest.content_hash
