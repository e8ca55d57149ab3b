#!/usr/bin/env python
"""Start, stop or look at the demo shop: the Serve graph on this machine, in the background.

    python jobs/shop.py start --recipe demo --port 8000
    python jobs/shop.py status --recipe demo
    python jobs/shop.py stop --recipe demo

`start` returns when a real request has been answered. The shop has a Ray of its own and never joins another one;
`stop` ends exactly what `start` began, and the embedded Postgres of the same store.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from rec import artifact, postgres
from rec.cli import main, parser
from rec.config import Config
from rec.errors import ConfigError, RecError

HOST = "127.0.0.1"
CHECKOUT = Path(__file__).resolve().parent.parent
START_SECONDS = 180.0
STOP_SECONDS = 30.0
REQUEST = {"context": "a weekend of hiking in the mountains", "profile": {"height_cm": 181.0}, "k": 5}


class Shop:
    """The shop of one store: its folder holds the Serve configuration, the log and the process record."""

    def __init__(self, store: Path) -> None:
        self.store = store.resolve()
        self.folder = self.store / "shop"
        self.record = self.folder / "process.json"
        self.log = self.folder / "serve.log"

    def process(self) -> tuple[psutil.Process, int] | None:
        """The running `serve run` and its port; None when the recorded process is gone."""
        if not self.record.is_file():
            return None
        known = json.loads(self.record.read_text(encoding="utf-8"))
        try:
            process = psutil.Process(known["pid"])
            same = process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return (process, known["port"]) if same else None

    def launch(self, port: int) -> psutil.Process:
        """Start `serve run` in a session of its own and record it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "serve.json"  # JSON is YAML
        artifact.write_json(
            config,
            {
                "http_options": {"host": HOST, "port": port},
                "applications": [{"name": "shop", "route_prefix": "/", "import_path": "serve.app:graph"}],
            },
        )
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"REC_STORE": str(self.store), "RAY_USAGE_STATS_ENABLED": "0"}
        command = [str(Path(sys.executable).parent / "serve"), "run", "--address", "local"]
        with self.log.open("wb") as log:
            started = subprocess.Popen(
                [*command, "--app-dir", str(CHECKOUT), str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        process = psutil.Process(started.pid)
        artifact.write_json(self.record, {"pid": process.pid, "created": process.create_time(), "port": port})
        return process

    def end(self) -> bool:
        """Stop the shop and every process below it; False when none was running."""
        found = self.process()
        if found is not None:
            process, _ = found
            family = [process, *process.children(recursive=True)]
            process.send_signal(signal.SIGINT)
            _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
            for survivor in left:
                survivor.kill()
            psutil.wait_procs(left, timeout=STOP_SECONDS)
        self.record.unlink(missing_ok=True)
        return found is not None


def start(config: Config, port: int) -> dict[str, Any]:
    """Start the shop on `port`, wait until it is ready, send one request."""
    shop = Shop(Path(config.store))
    running = shop.process()
    if running is not None:
        raise ConfigError(f"the shop of {shop.store} already runs on port {running[1]}: `make stop` ends it")
    _check_free(port)
    process = shop.launch(port)
    try:
        _await_ready(shop, process, port)
    except BaseException:
        shop.end()
        raise
    answer = _call(port, "/v1/recommend", REQUEST)
    for item in answer["items"]:
        print(f"  {item['score']:8.3f}  {item['title']}  ({', '.join(item['reasons'])})", file=sys.stderr)
    url = f"http://{HOST}:{port}/"
    return {"url": url, "bundle": answer["bundle"], "items": len(answer["items"]), "log": str(shop.log)}


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"port {port} on {HOST} cannot be had ({error}): choose another with PORT= or --port") from None


def _await_ready(shop: Shop, process: psutil.Process, port: int) -> None:
    """Return when /readyz answers 200; that is one real recommendation."""
    began = said = time.monotonic()
    print("waiting for the shop to answer", end="", file=sys.stderr, flush=True)
    while time.monotonic() - began < START_SECONDS:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise RecError(f"the shop ended while starting; the end of {shop.log}:\n{_tail(shop.log)}")
        try:
            _call(port, "/readyz", None)
        except (OSError, ValueError):  # not listening yet, or 503: a part is still loading
            time.sleep(0.5)
        else:
            print(f" {time.monotonic() - began:.0f} s", file=sys.stderr)
            return
        if time.monotonic() - said > 2:
            print(".", end="", file=sys.stderr, flush=True)
            said = time.monotonic()
    raise RecError(f"the shop was not ready after {START_SECONDS:.0f} s; the end of {shop.log}:\n{_tail(shop.log)}")


def _call(port: int, path: str, body: Mapping[str, Any] | None) -> Any:
    request = urllib.request.Request(
        f"http://{HOST}:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def stop(config: Config) -> dict[str, Any]:
    """End the shop and the embedded Postgres of its store."""
    shop = Shop(Path(config.store))
    return {"shop": shop.end(), "postgres": postgres.stop_embedded(shop.store)}


def status(config: Config) -> dict[str, Any]:
    """Whether the shop runs, and where."""
    found = Shop(Path(config.store)).process()
    return {"running": found is not None, "url": f"http://{HOST}:{found[1]}/" if found else None}


def run(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Do what the first argument says."""
    if options.action == "start":
        return start(config, options.port)
    return stop(config) if options.action == "stop" else status(config)


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("action", choices=("start", "stop", "status"))
    arguments.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: 8000)")
    main(run, arguments)
