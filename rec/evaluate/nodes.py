"""Nodes of a Ray cluster that die and come: three on this machine, as processes, and the pipeline of a recipe on them.

    STAGE.killed           nodes killed with SIGKILL (raylet and all its workers) while that stage's work ran on them
    STAGE.seconds          the stage, and `alone` it without a cluster and without a loss
    artifacts.differing    of the artifacts of `artifacts.compared`, the evaluation among them, those that are not what
                           the undisturbed run made
    bundles.differing      1 where the bundle has another id than that of the undisturbed run
    serving.failed         neither 200 nor 503 (any 503), or no answer, while a node that held replicas died
    serving.refused        answers that were 503
    serving.degraded       answers that did without a stage
    serving.longest_s      the longest wait for an answer; `node_loss.RATE` requests a second, whatever comes back
    serving.recovery_s     from the kill until every deployment had all its replicas again; those that come have the
                           least priority
    autoscaler.peak        nodes at once beside the head while the item tower trained on a cluster that had none
    autoscaler.left        and some time after it

The head is not killed: `cluster/README.md` says what a lost head costs.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rec import artifact, postgres
from rec.evaluate.autoscaling import scaled
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.local_nodes import Job, Nodes
from rec.evaluate.node_loss import served

STAGES = {"enrich": "MapWorker", "pretrain": "RayTrainWorker", "train_user": "RayTrainWorker"}
"""By stage, the class of the actors whose node is killed."""

log = logging.getLogger(__name__)


def measure(jobs: Path, recipe: str, overrides: Sequence[str], *, serve_s: float) -> Figures:
    """All figures; `jobs` is the folder of the job files. Raises RecError where nothing was killed, or a job fails."""
    with tempfile.TemporaryDirectory(prefix="rec-nodes-") as folder:
        alone, apart = Path(folder) / "alone", Path(folder) / "apart"
        job = Job(jobs, recipe, overrides)
        try:
            with job.started("pipeline.py", alone) as running:
                before = running.result()
            with Nodes() as nodes:
                with job.started("pipeline.py", apart, RAY_ADDRESS=nodes.address) as running:
                    for stage, actor in STAGES.items():
                        nodes.kill(running, stage, actor)
                    after = running.result()
                figures = served(nodes, job, apart, serve_s)
            made = [_hashes(store) for store in (alone, apart)]
            figures |= scaled(job, apart)
        finally:
            for store in (alone, apart):
                postgres.stop_embedded(store)
        for stage in STAGES:
            figures[f"{stage}.killed"] = figure(1, "nodes", goal=1)
            figures[f"{stage}.seconds"] = figure(round(after["seconds"][stage], 1), "s")
            figures[f"{stage}.alone"] = figure(round(before["seconds"][stage], 1), "s")
        figures["bundles.differing"] = figure(int(before["bundle"] != after["bundle"]), "bundles", goal=0)
        return figures | compared(*made)


def compared(one: Mapping[str, str], other: Mapping[str, str]) -> Figures:
    """Figures of two stores' artifacts, content hash by name."""
    names = one.keys() | other.keys()
    differing = sorted(name for name in names if one.get(name) != other.get(name))
    for name in differing:
        log.warning("%s is not what the undisturbed run made", name)
    return {
        "artifacts.compared": figure(len(names), "artifacts"),
        "artifacts.differing": figure(len(differing), "artifacts", goal=0),
    }


def _hashes(store: Path) -> dict[str, str]:
    """Content hash of every artifact by name."""
    found = {path.name: artifact.peek(path) for path in store.glob("*/*") if path.is_dir()}
    return {name: manifest.content_hash for name, manifest in found.items() if manifest is not None}
