"""Jobs, and Ray nodes of this machine for them to run on."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from rec.errors import RecError
from rec.ports import free

NODE_CPUS = 3
STORE_BYTES = 150 * 2**20
LONG_S = 900.0
LEAST = 19
"""The greatest niceness: beside others of 0 it has a hundredth of a processor."""


class Running:
    """A job in a process of its own, whose log says which stage it is in."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.process, self._path = process, path
        self.stages: list[str] = []
        """Those that have begun, in order."""
        self._watcher = Thread(target=self._watch, daemon=True)
        self._watcher.start()

    @property
    def stage(self) -> str:
        """The one that began last; empty before the first."""
        return self.stages[-1] if self.stages else ""

    def result(self) -> dict[str, Any]:
        """What it printed last, once it has ended well."""
        assert self.process.stdout is not None
        printed = self.process.stdout.read()
        self._watcher.join()
        if self.process.wait():
            raise RecError(f"{self._path.stem} ended with code {self.process.returncode}: {end_of(self._path)}")
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found

    def _watch(self) -> None:
        assert self.process.stderr is not None
        with self._path.open("w", encoding="utf-8") as kept:
            for line in self.process.stderr:
                kept.write(line)
                kept.flush()
                began = re.search(r"stage \d+/\d+ (\w+): start", line)
                self.stages += [began.group(1)] if began else []


class Job:
    """Jobs of one recipe."""

    def __init__(self, jobs: Path, recipe: str, overrides: Sequence[str]) -> None:
        self.folder = jobs
        self._told = ["--recipe", recipe, *(word for each in overrides for word in ("--set", each))]

    @contextmanager
    def started(self, name: str, store: Path, *, more: Sequence[str] = (), **environment: str) -> Iterator[Running]:
        """The job on a store, with `more` overrides; it is ended with the block."""
        store.mkdir(parents=True, exist_ok=True)
        told = [*self._told, *(word for each in (f"store={store}", *more) for word in ("--set", each))]
        command = [sys.executable, str(self.folder / name), *told]
        clean = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        process = subprocess.Popen(
            command, env=clean | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield Running(process, store / f"{name}.log")
        finally:
            process.kill()
            process.wait()


class Nodes:
    """A head and two nodes, of which the head runs no work of the pipeline's."""

    def __enter__(self) -> "Nodes":
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                **_node(0, niceness=0),
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

    def add(self, *, apart: bool = False) -> None:
        """One more node; `apart`: its workers have about what those of the other nodes leave of the processors.

        On another machine they would take nothing of theirs.
        """
        self._cluster.add_node(**_node(NODE_CPUS, niceness=LEAST if apart else 0))

    def kill(self, running: Running, stage: str, actor: str) -> None:
        """Kill the node on which `stage` works as soon as it does, and bring another.

        Raises RecError where the stage is over before, or the job ends without it: then nothing was drilled.
        """
        deadline = time.monotonic() + LONG_S
        while running.stage != stage or not self.busy(actor):
            if time.monotonic() > deadline or running.process.poll() is not None or stage in running.stages[:-1]:
                raise RecError(f"no node was killed in {stage}, which was over too soon: take a recipe with more work")
            time.sleep(0.1)
        time.sleep(1.0)  # in the middle of its work
        self.lose(actor)
        self.add()
        if running.stage != stage:
            raise RecError(f"{stage} was over when its node was killed: take a recipe with more work")

    def lose(self, actor: str) -> None:
        """SIGKILL a node on which such an actor lives, with all that runs on it.

        Raises RecError where there is none.
        """
        node_id = next(iter(self.busy(actor)), None)
        if node_id is None:
            raise RecError(f"no node has a living {actor}, so none was killed: take a recipe with more work")
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


def _node(cpus: int, *, niceness: int) -> dict[str, Any]:
    """A node's arguments; its workers are as nice as that, and not by 15 as Ray has them."""
    return {
        "num_cpus": cpus,
        "object_store_memory": STORE_BYTES,
        "env_vars": {"RAY_worker_niceness": str(niceness)},
    }


def until(what: str, holds: Callable[[], bool], process: subprocess.Popen[bytes], said: Path) -> None:
    """Wait until it holds. Raises RecError, with the end of what `process` said, when it ends or takes too long."""
    deadline = time.monotonic() + LONG_S
    while not holds():
        if time.monotonic() > deadline or process.poll() is not None:
            raise RecError(f"{what}: {end_of(said)}")
        time.sleep(0.2)


def end_of(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8", errors="replace")[-1_500:].split())


def ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
