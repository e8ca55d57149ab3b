"""The graph under load while one of its nodes dies: the `serving.*` of `rec.evaluate.nodes`."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

from rec import artifact
from rec.evaluate import load
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.local_nodes import Job, Nodes, ended, until
from rec.ports import free

CLIENTS = 2


def served(nodes: Nodes, job: Job, store: Path, seconds: float) -> Figures:
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
        until("the shop did not get ready", lambda: _answers(f"http://127.0.0.1:{port}/readyz"), server, said)

        def whole() -> bool:
            return _replicas(nodes, names) == 2 * len(names)

        until("the shop did not get its replicas", whole, server, said)
        return _struck(
            nodes,
            f"http://127.0.0.1:{port}/v1/recommend",
            lambda: until("the shop did not get its replicas back", whole, server, said),
            seconds,
        )
    finally:
        server.send_signal(signal.SIGINT)
        ended(server)


def _struck(nodes: Nodes, url: str, recover: Callable[[], None], seconds: float) -> Figures:
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
    nodes.lose("ServeReplica")
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


def _replicas(nodes: Nodes, names: Sequence[str]) -> int:
    """Living replicas of the deployments, on nodes that live."""
    return sum(nodes.count(f"ServeReplica:shop:{name}") for name in names)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
