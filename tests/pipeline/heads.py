"""Heads of Ray clusters of one node, with a token."""

import secrets
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

START_S = 90


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def head(folder: Path, environment: Mapping[str, str], *options: str) -> Iterator[tuple[dict[str, str], str]]:
    """A Ray head started in `folder`; yields the environment in which `ray job submit` finds it, and its own address.

    `options`: more of `ray start`'s; without any it has an object store of 200 MiB. Only its own `--block` process is
    signalled at the end, which takes its cluster with it.
    """
    port, dashboard, agent, client, metrics = _free_ports(5)
    temporary = tempfile.mkdtemp(prefix="ray")  # short: Ray puts Unix sockets into it
    within = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=3",
        *(options or (f"--object-store-memory={200 * 2**20}",)),
        f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}", f"--temp-dir={temporary}",
        "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats",
    ]  # fmt: skip
    log = (folder / "head.log").open("w")
    head = subprocess.Popen(command, cwd=folder, env=within, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(f"{address}/api/jobs/", within["RAY_AUTH_TOKEN"], head, folder)
        yield {**within, "RAY_API_SERVER_ADDRESS": address}, f"127.0.0.1:{port}"
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        log.close()
        shutil.rmtree(temporary, ignore_errors=True)


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
