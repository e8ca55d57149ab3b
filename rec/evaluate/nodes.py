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

import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from rec import artifact, postgres
from rec.errors import RecError
from rec.evaluate import load
from rec.evaluate.benchmark import Figures, figure
from rec.ports import free

STAGES = {"enrich": "MapWorker", "pretrain": "RayTrainWorker", "train_user": "RayTrainWorker"}
"""By stage, the class of the actors whose node is killed."""
COMPARED = ("enriched", "vocabulary", "tensors", "item_tower", "vectors", "user_tower", "samples", "ranker")
NODE_CPUS = 3
STORE_BYTES = 150 * 2**20
CLIENTS = 2
LONG_S = 900.0
LISTS = (
    "cluster_synced_files",
    "head_setup_commands",
    "head_start_ray_commands",
    "initialization_commands",
    "rsync_exclude",
    "rsync_filter",
    "setup_commands",
    "worker_setup_commands",
    "worker_start_ray_commands",
)
"""What the autoscaler's configuration must have; nodes of this machine need none of it."""

log = logging.getLogger(__name__)


def measure(jobs: Path, recipe: str, overrides: Sequence[str], *, serve_s: float) -> Figures:
    """All figures; `jobs` is the folder of the job files. Raises RecError where the drill itself cannot go on."""
    with tempfile.TemporaryDirectory(prefix="rec-nodes-") as folder:
        alone, apart = Path(folder) / "alone", Path(folder) / "apart"
        job = _Job(jobs, recipe, overrides)
        try:
            with job.started("pipeline.py", alone) as running:
                before = running.result()["seconds"]
            with _Nodes() as nodes:
                with job.started("pipeline.py", apart, RAY_ADDRESS=nodes.address) as running:
                    killed = {stage: nodes.kill(running, stage, actor) for stage, actor in STAGES.items()}
                    after = running.result()["seconds"]
                figures = _served(nodes, job, apart, serve_s)
            hashes = [{kind: _hash(store, kind) for kind in COMPARED} for store in (alone, apart)]
            figures |= _scaled(job, apart)
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


class _Running:
    """A job in a process of its own, whose log says which stage it is in."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.process, self._path = process, path
        self.stage = ""
        """The one that began last."""
        self._watcher = Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def result(self) -> dict[str, Any]:
        """What it printed last, once it has ended well."""
        assert self.process.stdout is not None
        printed = self.process.stdout.read()
        self._watcher.join()
        if self.process.wait():
            raise RecError(f"{self._path.stem} ended with code {self.process.returncode}: {_end(self._path)}")
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found

    def _watch(self) -> None:
        assert self.process.stderr is not None
        with self._path.open("w", encoding="utf-8") as kept:
            for line in self.process.stderr:
                kept.write(line)
                kept.flush()
                began = re.search(r"stage \d+/\d+ (\w+): start", line)
                self.stage = began.group(1) if began else self.stage


class _Job:
    """Jobs of one recipe."""

    def __init__(self, jobs: Path, recipe: str, overrides: Sequence[str]) -> None:
        self.folder = jobs
        self._told = ["--recipe", recipe, *(word for each in overrides for word in ("--set", each))]

    @contextmanager
    def started(self, name: str, store: Path, *, more: Sequence[str] = (), **environment: str) -> Iterator[_Running]:
        """The job on a store, with `more` overrides; it is ended with the block."""
        store.mkdir(parents=True, exist_ok=True)
        told = [*self._told, *(word for each in (f"store={store}", *more) for word in ("--set", each))]
        command = [sys.executable, str(self.folder / name), *told]
        clean = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        process = subprocess.Popen(
            command, env=clean | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield _Running(process, store / f"{name}.log")
        finally:
            process.kill()
            process.wait()


class _Nodes:
    """A head and two nodes, of which the head runs no work of the pipeline's."""

    def __enter__(self) -> "_Nodes":
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": STORE_BYTES,
                "include_dashboard": True,  # which answers for what runs where
                "dashboard_port": free(),
            },
        )
        self.address = str(self._cluster.address)
        for _ in range(2):
            self.add()
        ray.init(self.address, namespace="nodes", logging_level=logging.ERROR, log_to_driver=False)
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()
        self._cluster.shutdown()

    def add(self) -> None:
        """One more node."""
        self._cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=STORE_BYTES)

    def kill(self, running: _Running, stage: str, actor: str) -> int:
        """Kill the node on which `stage` works as soon as it does, and bring another; returns how many were killed."""
        until, begun = time.monotonic() + LONG_S, False
        while time.monotonic() < until and running.process.poll() is None:
            begun |= running.stage == stage
            if begun and running.stage != stage:
                return 0  # it was too short
            if begun and self.busy(actor):
                time.sleep(1.0)  # in the middle of its work
                busy = self.busy(actor)
                if not busy:
                    return 0
                self.lose(busy[0])
                self.add()
                return 1
            time.sleep(0.1)
        return 0

    def lose(self, node_id: str) -> None:
        """SIGKILL a node and all that runs on it."""
        (node,) = [each for each in self._cluster.worker_nodes if each.node_id == node_id]
        self._cluster.remove_node(node, allow_graceful=False)

    def busy(self, actor: str) -> list[str]:
        """Ids of the nodes, the head aside, with living actors whose class begins with `actor`."""
        return list(dict.fromkeys(self._where(actor)))

    def count(self, actor: str) -> int:
        """Living actors of the class on these nodes."""
        return len(self._where(actor))

    def _where(self, actor: str) -> list[str]:
        workers = {node.node_id for node in self._cluster.worker_nodes}
        actors = list_actors(address=self.address, filters=[("state", "=", "ALIVE")], limit=1_000)
        found = [str(each.node_id) for each in actors if str(each.class_name).startswith(actor)]
        return [node for node in found if node in workers]


def _hash(store: Path, kind: str) -> str:
    (folder,) = store.glob(f"*/{kind}")
    manifest = artifact.peek(folder)
    assert manifest is not None, f"the pipeline ended without {folder}"
    return manifest.content_hash


def _served(nodes: _Nodes, job: _Job, store: Path, seconds: float) -> Figures:
    """Load on the graph, two replicas of each deployment on two nodes, of which one dies."""
    port, config, checkout = free(), store / "two.json", str(job.folder.parent)
    environment = {"REC_STORE": str(store), "PYTHONPATH": checkout}
    options = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.2}}
    names = ("Recommender", "UserTower", "Retriever", "Ranker")
    artifact.write_json(
        config,
        {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": 20},
            "applications": [
                {
                    "name": "shop",
                    "import_path": "serve.app:graph",
                    "runtime_env": {"env_vars": environment},
                    "deployments": [{"name": name, **options} for name in names],
                }
            ],
        },
    )
    command = [str(Path(sys.executable).parent / "serve"), "run", "--address", nodes.address]
    with (store / "serve.log").open("wb") as out:
        server = subprocess.Popen(
            [*command, str(config)], cwd=checkout, env=os.environ | environment, stdout=out, stderr=out
        )
    try:
        said = store / "serve.log"
        _until("the shop did not get ready", lambda: _answers(f"http://127.0.0.1:{port}/readyz"), server, said)

        def whole() -> bool:
            return _replicas(nodes, names) == 2 * len(names)

        _until("the shop did not get its replicas", whole, server, said)
        return _struck(
            nodes,
            f"http://127.0.0.1:{port}/v1/recommend",
            lambda: _until("the shop did not get its replicas back", whole, server, said),
            seconds,
        )
    finally:
        server.send_signal(signal.SIGINT)
        _ended(server)


def _struck(nodes: _Nodes, url: str, recover: Callable[[], None], seconds: float) -> Figures:
    """Answers while a node dies a quarter of the way; the other node comes a moment later."""
    found: list[load.Answers] = []
    asked = Thread(
        target=lambda: found.append(
            load.closed(url, [{"k": 10}, {"k": 5}], clients=CLIENTS, seconds=seconds, keep=1_000_000)
        )
    )
    asked.start()
    time.sleep(seconds / 4)
    began = time.monotonic()
    nodes.lose(nodes.busy("ServeReplica")[0])
    nodes.add()
    recover()
    recovered = time.monotonic() - began
    asked.join()
    (answers,) = found
    refused = answers.statuses.get(503, 0)
    return {
        "serving.answers": figure(len(answers.milliseconds), "answers"),
        "serving.failed": figure(
            sum(answers.statuses.values()) - len(answers.milliseconds) - refused, "answers", goal=0
        ),
        "serving.refused": figure(refused, "answers"),
        "serving.degraded": figure(sum(bool(body["degraded"]) for body in answers.bodies), "answers"),
        "serving.recovery_s": figure(round(recovered, 1), "s"),
    }


def _replicas(nodes: _Nodes, names: Sequence[str]) -> int:
    """Living replicas of the deployments, on nodes that live."""
    return sum(nodes.count(f"ServeReplica:shop:{name}") for name in names)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _until(what: str, holds: Callable[[], bool], process: subprocess.Popen[bytes], said: Path) -> None:
    """Wait until it holds. Raises RecError, with the end of what `process` said, when it ends or takes too long."""
    until = time.monotonic() + LONG_S
    while not holds():
        if time.monotonic() > until or process.poll() is not None:
            raise RecError(f"{what}: {_end(said)}")
        time.sleep(0.2)


def _end(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8", errors="replace")[-1_500:].split())


def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _scaled(job: _Job, store: Path) -> Figures:
    """Nodes while the item tower is trained once more, on a head without CPUs and Ray's autoscaler of local nodes."""
    with _autoscaled(store) as (session, environment):
        with job.started("pretrain.py", store, more=["item_tower.train.epochs=10"], **environment) as running:
            peak = 0
            while running.process.poll() is None:
                peak = max(peak, _beside_head(session))
                time.sleep(0.5)
            running.result()
        until = time.monotonic() + LONG_S
        while _beside_head(session) and time.monotonic() < until:
            time.sleep(0.5)
        left = _beside_head(session)
    return {
        "autoscaler.peak": figure(peak, "nodes", goal=1),
        "autoscaler.left": figure(left, "nodes", goal=0),
    }


def _beside_head(session: int) -> int:
    """Raylets of the process session, of which one is the head's."""
    found = 0
    for process in psutil.process_iter(["name"]):
        with suppress(ProcessLookupError):  # it has just ended
            found += process.info["name"] == "raylet" and os.getsid(process.pid) == session
    return found - 1


@contextmanager
def _autoscaled(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A head whose autoscaler starts up to two nodes on this machine and ends those that idle.

    Yields the process session of all of them, and the environment of jobs.
    """
    port = free()
    address = f"127.0.0.1:{port}"
    worker = {"resources": {"CPU": NODE_CPUS}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    config = folder / "autoscaler.json"  # JSON is YAML
    artifact.write_json(
        config,
        {
            **{key: [] for key in LISTS},
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            "cluster_name": "nodes",
            "max_workers": 2,
            "idle_timeout_minutes": 0.1,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "gcs_address": address,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": worker,
            },
        },
    )
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    of_head = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_enable_autoscaler_v2": "1",
    }
    temporary = tempfile.mkdtemp(prefix="ray")  # short: Ray puts Unix sockets into it
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0",
        f"--object-store-memory={STORE_BYTES}", f"--port={port}", f"--dashboard-port={free()}",
        f"--temp-dir={temporary}", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats",
        f"--autoscaling-config={config}",
    ]  # fmt: skip
    with (folder / "head.log").open("wb") as out:
        head = subprocess.Popen(
            command, env=os.environ | token | of_head, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _until("Ray did not start", lambda: _listens(port), head, folder / "head.log")
        yield head.pid, {"RAY_ADDRESS": address, **token}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGTERM)  # the nodes that the autoscaler started are of its session
        _ended(head)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
