"""`jobs/pretrain.py` runs three ways with the same result: plain, as a packed Ray job, and literally. And tokens."""

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from rec import artifact, encode
from tests.item_tower import catalogue
from tests.train.in_process import data_in_process

START_S = 90


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _head(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    """A Ray head started in `folder`; yields the environment of who did what the guide says before `ray job submit`,
    and the head's own address.

    Only its own `--block` process is signalled at the end, which takes its cluster with it.
    """
    port, dashboard, agent, client, metrics = _free_ports(5)
    temporary = tempfile.mkdtemp(prefix="ray")  # short: Ray puts Unix sockets into it
    within = {
        **environment,
        "PYTHONPATH": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=3", f"--object-store-memory={200 * 2**20}",
        f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}", f"--temp-dir={temporary}",
        "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats",
    ]  # fmt: skip
    log = (folder / "head.log").open("w")
    head = subprocess.Popen(command, cwd=folder, env=within, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(f"{address}/api/jobs/", within["RAY_AUTH_TOKEN"], head, folder)
        away = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH_")}
        submitting = {**away, **_exported(within["RAY_AUTH_TOKEN"]), "RAY_API_SERVER_ADDRESS": address}
        yield submitting, f"127.0.0.1:{port}"
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        log.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _exported(token: str) -> dict[str, str]:
    """Variables that the operations guide exports before it submits; what it reads from the cluster is `token`."""
    guide = (Path(__file__).resolve().parents[2] / "cluster" / "README.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL) if "export RAY_" in text]
    assert "ray job submit" in block.split("export RAY_")[-1]
    lines = [line.partition("  #")[0] for line in block.splitlines() if line.startswith("export ")]
    shown = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    return {name: token if value.startswith("$(kubectl") else value for name, value in shown.items()}


def _wait_for(jobs: str, token: str, head: subprocess.Popen[bytes], folder: Path) -> None:
    """Until the job API answers; `ray job list` takes as long to start as the head does."""
    until = time.monotonic() + START_S
    asked = urllib.request.Request(jobs, headers={"Authorization": f"Bearer {token}"})
    while time.monotonic() < until:
        with suppress(OSError), urllib.request.urlopen(asked, timeout=10):
            return
        assert head.poll() is None, (folder / "head.log").read_text()
        time.sleep(0.1)
    pytest.fail(f"the Ray head did not answer within {START_S} s: {(folder / 'head.log').read_text()[-2_000:]}")


def _ended_well(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3_000:]}\n{done.stderr[-3_000:]}"
    return done.stdout


def _tower_hash(store: Path) -> str:
    manifest = artifact.peek(store / "demo" / "item_tower")
    assert manifest is not None, f"no item tower in {store}"
    return manifest.content_hash


@pytest.mark.long
@pytest.mark.usefixtures("ray_local")
def test_pretrain_runs_three_ways_with_the_same_result(
    checkout: Path, tmp_path: Path, environment_of_jobs: dict[str, str]
) -> None:
    tree = catalogue.write(tmp_path, 96)
    with data_in_process():
        encode.run(tree)
    made = (
        (tmp_path / "catalogue.toml")
        .read_text()
        .replace(f'store = "{tmp_path}"', "")
        .replace("epochs = 30", "epochs = 2")
    )
    (checkout / "rec" / "recipes" / "demo.toml").write_text(made.replace('name = "catalogue"', 'name = "demo"'))
    plain, packed, literal = tmp_path / "plain", tmp_path / "packed", checkout / ".rec"
    for store in (plain, packed, literal):
        for name in ("vocabulary", "tensors", "text_states"):
            shutil.copytree(tree.at(name), store / "demo" / name)
    job = ["python", "jobs/pretrain.py"]
    alone = {**environment_of_jobs, "PYTHONPATH": str(checkout)}

    output = _ended_well([*job, "--set", f"store={plain}"], checkout, alone)
    assert json.loads(output.splitlines()[-1])["item_tower"] == str(plain / "demo" / "item_tower")

    with _head(checkout, environment_of_jobs) as (cluster, _):
        options = ["--recipe", "demo", "--set", f"store={packed}"]
        _ended_well(["ray", "job", "submit", "--working-dir", ".", "--", *job, *options], checkout, cluster)
        _ended_well(["ray", "job", "submit", "jobs/pretrain.py"], checkout, cluster)

    assert len({_tower_hash(store) for store in (plain, packed, literal)}) == 1
    assert os.access(checkout / "jobs" / "pretrain.py", os.X_OK)


@pytest.mark.long
def test_a_wrong_token_is_said_before_any_work(
    checkout: Path, tmp_path: Path, environment_of_jobs: dict[str, str]
) -> None:
    store = tmp_path / "store"
    command = ["python", "jobs/pipeline.py", "--set", f"store={store}"]
    with _head(checkout, environment_of_jobs) as (cluster, address):
        environment = {**cluster, "RAY_ADDRESS": address, "RAY_AUTH_TOKEN": "another" * 8}
        job = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert job.returncode == 2, job.stderr[-2_000:]
    said = job.stderr.splitlines()[-1]
    assert said.startswith("error: Ray does not start (Failed to connect to Ray cluster"), said
    assert "compare the token (RAY_AUTH_TOKEN, " in said
    assert "another" not in job.stderr + job.stdout
    assert "stage 1/" not in job.stderr
    assert [path.name for path in store.rglob("*") if path.is_file()] == [artifact.LOCK]


@pytest.mark.slow
def test_a_local_ray_needs_no_token(tmp_path: Path, checkout: Path, environment_of_jobs: dict[str, str]) -> None:
    """And says nothing of one."""
    given = {name: value for name, value in environment_of_jobs.items() if not name.startswith("RAY_AUTH")}
    command = ["python", "-c", "from rec import runtime; runtime.start(1)"]
    environment = {**given, "HOME": str(tmp_path), "PYTHONPATH": str(checkout)}
    job = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stderr[-2_000:]
    assert "token" not in (job.stdout + job.stderr).lower()
