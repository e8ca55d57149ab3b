"""The drill on nodes: what it reads of a running job, and a training on nodes of which one dies.

The whole drill, `jobs/benchmark.py nodes`, takes minutes.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rec import artifact, encode
from rec.config import load
from rec.errors import RecError
from rec.evaluate import node_loss, nodes
from rec.evaluate.autoscaling import scaled
from rec.evaluate.load import LATE, Asked
from rec.evaluate.local_nodes import Job, Nodes, Running
from rec.train import item
from tests.item_tower import catalogue
from tests.train.in_process import data_in_process, in_process

PIPELINE = """\
import json, sys, time
for number, stage in enumerate(("enrich", "pretrain"), 1):
    print(f"INFO rec.pipeline: stage {number}/2 {stage}: start", file=sys.stderr, flush=True)
    while not (open(sys.argv[-1].partition("=")[2] + "/" + stage).read()): time.sleep(0.01)
print(json.dumps({"seconds": {"enrich": 1.5}, "told": sys.argv[1:]}))
sys.exit(open(sys.argv[-1].partition("=")[2] + "/pretrain").read() == "fail")
"""


@pytest.mark.parametrize("end", ["go", "fail"])
def test_a_job_is_followed_by_its_stages_to_its_end(tmp_path: Path, end: str) -> None:
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    store = tmp_path / "store"
    store.mkdir()
    for stage in ("enrich", "pretrain"):
        (store / stage).touch()
    with Job(tmp_path, "demo", ["seed=3"]).started("pipeline.py", store) as running:
        for stage, word in (("enrich", "go"), ("pretrain", end)):
            until = time.monotonic() + 20
            while running.stage != stage and time.monotonic() < until:
                time.sleep(0.01)
            assert running.stage == stage
            (store / stage).write_text(word)
        if end == "fail":
            with pytest.raises(RecError, match=r"pipeline[.]py ended with code 1: .*stage 2/2 pretrain"):
                running.result()
            return
        said = running.result()
    assert said["seconds"] == {"enrich": 1.5}
    assert said["told"] == ["--recipe", "demo", "--set", "seed=3", "--set", f"store={store}"]


def test_a_job_is_ended_with_its_block(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("import time; time.sleep(60)")
    with Job(tmp_path, "demo", []).started("pipeline.py", tmp_path) as running:
        assert running.process.poll() is None
    assert running.process.poll() is not None


def _after(stages: list[str], folder: Path) -> Running:
    """A job that goes on, in the last of `stages`."""
    lines = "".join(f"stage {number}/9 {name}: start\n" for number, name in enumerate(stages))
    told = f"import sys, time; sys.stderr.write({lines!r}); sys.stderr.flush(); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", told], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running, until = Running(process, folder / "log"), time.monotonic() + 20
    while running.stages != stages and time.monotonic() < until:
        time.sleep(0.01)
    return running


class Cluster(Nodes):
    """Nodes that have the work when they are first asked, and as often as said."""

    def __init__(self, times: int) -> None:
        self._left = times

    def busy(self, actor: str) -> list[str]:
        self._left -= 1
        return ["n1"] if self._left >= 0 else []


@pytest.mark.parametrize(
    ("stages", "times", "said"),
    [
        (["enrich", "tensorize"], 9, "no node was killed in enrich, which was over too soon"),
        (["enrich"], 1, "no node has a living MapWorker, so none was killed"),
    ],
)
def test_a_drill_that_kills_nothing_fails(tmp_path: Path, stages: list[str], times: int, said: str) -> None:
    running = _after(stages, tmp_path)
    cluster = Cluster(times)
    try:
        with pytest.raises(RecError, match=said):
            cluster.kill(running, "enrich", "MapWorker")
    finally:
        running.process.kill()
        running.process.wait()


def test_what_two_runs_made_is_compared_by_name_and_content() -> None:
    one = {"tensors": "a", "vectors": "b", "evaluation": "c"}
    found = nodes.compared(one, {"tensors": "a", "vectors": "x", "ranker": "d"})
    assert {name: value["value"] for name, value in found.items()} == {
        "artifacts.compared": 4,
        "artifacts.differing": 3,
    }
    assert nodes.compared(one, dict(one))["artifacts.differing"]["value"] == 0


def test_every_request_of_the_drill_on_the_graph_is_counted_once() -> None:
    bodies = [{"degraded": []}, {"degraded": ["ranker_unavailable"]}]
    answered = [Asked(0, 0.0, 20.0, 200, body) for body in bodies]
    others = [Asked(0, 0.0, wait, status, None) for wait, status in ((5.0, 503), (900.0, 500), (30_000.0, LATE))]
    found = {name: each["value"] for name, each in node_loss.told([*answered, *others]).items()}
    assert found == {
        "serving.answers": 2,
        "serving.failed": 2,
        "serving.refused": 1,
        "serving.degraded": 1,
        "serving.longest_s": 30.0,
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and a store in which all is there that a training of the item tower reads."""
    folder = tmp_path_factory.mktemp("prepared")
    with data_in_process():
        encode.run(catalogue.write(folder, 96))
    return folder


def _made_on_nodes(prepared: Path, store: Path) -> Path:
    shutil.copytree(prepared / "catalogue", store / "catalogue")
    return prepared / "catalogue.toml"


def _undisturbed(prepared: Path, store: Path, *more: str) -> str:
    """Content hash of the tower that is trained in this process with `more` options, on a store of its own."""
    recipe = _made_on_nodes(prepared, store)
    with in_process(item.loop):
        item.run(load(str(recipe), [f"store={store}", *more]))
    return _hash(store)


def _hash(store: Path) -> str:
    manifest = artifact.peek(store / "catalogue" / "item_tower")
    assert manifest is not None, f"no tower in {store}"
    return manifest.content_hash


@pytest.mark.long
def test_a_training_goes_on_where_its_node_died(prepared: Path, tmp_path: Path, repository: Path) -> None:
    lost = tmp_path / "lost"
    recipe = _made_on_nodes(prepared, lost)
    command = [sys.executable, "-m", "tests.evaluate.loses_a_node", str(repository / "jobs"), str(recipe), str(lost)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert "going on after epoch" in (lost / "pretrain.py.log").read_text(encoding="utf-8")
    assert _hash(lost) == _undisturbed(prepared, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.long
def test_the_autoscaler_brings_nodes_for_a_training_and_takes_them_away_after_it(
    prepared: Path, tmp_path: Path, repository: Path
) -> None:
    store = tmp_path / "scaled"
    recipe = _made_on_nodes(prepared, store)
    figures = scaled(Job(repository / "jobs", str(recipe), []), store)
    assert figures["autoscaler.peak"]["value"] >= 1, "a head without CPUs trains nothing"
    assert figures["autoscaler.left"]["value"] == 0
    assert _hash(store) == _undisturbed(prepared, tmp_path / "alone", "item_tower.train.epochs=10")


@pytest.mark.long
def test_a_pipeline_and_a_shop_outlive_a_node_in_each_of_their_stages(repository: Path, tmp_path: Path) -> None:
    """The drill itself on the sample catalogue: nodes die in enrichment, in both trainings, and under load."""
    command = [
        sys.executable,
        "jobs/benchmark.py",
        "nodes",
        "--quick",
        "--recipe",
        "demo",
        "--set",
        f"store={tmp_path}",
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=1_800)
    assert done.returncode == 0, done.stderr[-4_000:]
    found = {name: each["value"] for name, each in json.loads(done.stdout.splitlines()[-1])["figures"].items()}
    assert [found[f"{stage}.killed"] for stage in nodes.STAGES] == [1, 1, 1]
    assert found["artifacts.compared"] >= 8
    assert found["artifacts.differing"] == found["bundles.differing"] == 0
    asked = sum(found[f"serving.{what}"] for what in ("answers", "failed", "refused"))
    assert asked > 0.9 * node_loss.RATE * max(15, found["serving.recovery_s"]), "it keeps its rate"
    assert found["serving.answers"] > 0.9 * asked
    assert found["serving.failed"] <= node_loss.RATE / 2, "what the lost server was just making; all else is answered"
    assert found["serving.longest_s"] < 15, "before Ray itself counts a node as dead"
    assert found["autoscaler.peak"] > found["autoscaler.left"] == 0
