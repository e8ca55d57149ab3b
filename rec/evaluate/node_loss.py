"""The graph under load while one of its nodes dies: the `serving.*` of `rec.evaluate.nodes`."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rec import artifact
from rec.evaluate import load
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.local_nodes import Job, Nodes, ended, until
from rec.ports import free

RATE = 10.0
"""Requests a second. Asked at a steady rate, for clients that wait to be answered ask least when answers come late."""


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
    """Answers while a node dies a quarter of the way; another comes a moment later, and its replicas with it."""
    with load.Paced(url, [{"k": 10}, {"k": 5}], rate=RATE) as asked:
        began = time.monotonic()
        time.sleep(seconds / 4)
        struck = time.monotonic()
        nodes.lose("ServeReplica")
        nodes.add(apart=True)
        recover()
        recovered = time.monotonic() - struck
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    return told(asked.answers) | {"serving.recovery_s": figure(round(recovered, 1), "s")}


def told(answers: Sequence[load.Asked]) -> Figures:
    """The `serving.*` of the answers; one that never came counts as failed, and its wait as one."""
    statuses = Counter(each.status for each in answers)
    return {
        "serving.answers": figure(statuses[200], "answers"),
        "serving.failed": figure(statuses.total() - statuses[200] - statuses[503], "answers", goal=0),
        "serving.refused": figure(statuses[503], "answers"),
        "serving.degraded": figure(
            sum(bool(each.body["degraded"]) for each in answers if each.status == 200), "answers"
        ),
        "serving.longest_s": figure(round(max((each.milliseconds for each in answers), default=0.0) / 1e3, 2), "s"),
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
