"""Ray's autoscaler under a training: the `autoscaler.*` of `rec.evaluate.nodes`."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from rec import artifact
from rec.errors import RecError
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.local_nodes import LONG_S, NODE_CPUS, STORE_BYTES, Job, ended, until
from rec.ports import free

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


def scaled(job: Job, store: Path) -> Figures:
    """Nodes while the item tower is trained once more, on a head without CPUs and Ray's autoscaler of local nodes.

    Raises RecError where none came, as for a tower that was there already.
    """
    with _autoscaled(store) as (session, environment):
        with job.started("pretrain.py", store, more=["item_tower.train.epochs=10"], **environment) as running:
            peak = 0
            while running.process.poll() is None:
                peak = max(peak, _beside_head(session))
                time.sleep(0.5)
            trained = running.result()
        if not peak:
            raise RecError(
                f"no node came for a training, which said {trained}: take a recipe with other epochs than 10"
            )
        deadline = time.monotonic() + LONG_S
        while _beside_head(session) and time.monotonic() < deadline:
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
        until("Ray did not start", lambda: _listens(port), head, folder / "head.log")
        yield head.pid, {"RAY_ADDRESS": address, **token}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGTERM)  # the nodes that the autoscaler started are of its session
        ended(head)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
