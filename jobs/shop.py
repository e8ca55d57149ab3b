#!/usr/bin/env python
"""Check for, start, stop or look at the demo shop: the recommender under Ray Serve on this machine, in the background.

    python jobs/shop.py check --recipe demo --port 8000
    python jobs/shop.py start --recipe demo --port 8000
    python jobs/shop.py status --recipe demo
    python jobs/shop.py stop --recipe demo

`check` says whether `start` would find its port, before hours of work that lead up to it. `start` returns when a real
request has been answered. The shop has a Ray of its own and never joins another one.
Every process of the shop carries the store's path in its environment, so that `stop` ends exactly these, however
`start` or the shop itself ended, and the embedded Postgres of the same store. `start --public` serves all addresses of
the machine instead of 127.0.0.1, to whoever has one of the keys in REC_API_KEYS. HAProxy, which comes with Ray on
Linux, hands requests to the replicas; elsewhere, and with `--proxy serve`, Serve's own proxy does, at some 5 ms more.
"""

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from rec import api_keys, artifact, bundle, haproxy, ports, postgres, processes
from rec.cli import main, parser
from rec.config import Config
from rec.errors import ConfigError, RecError
from rec.index import exposures, migrations, promote

HOST, ANYWHERE = "127.0.0.1", "0.0.0.0"  # asked for by --public, and only with keys
WHOLE, APART = "serve.app:whole", "serve.app:graph"
"""One process answers several times sooner than four where all share a few cores."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Ray's shared memory: requests and answers are small."""
CHECKOUT = Path(__file__).resolve().parent.parent
START_SECONDS = 300.0
STOP_SECONDS = 30.0
ORPHANED_SECONDS = 10.0
"""How long processes may outlive their parent before they are told as well."""
PARTING_SECONDS = 5.0
"""How long Postgres may take to notice that the shop is gone."""
REQUEST_SECONDS = 20.0
"""Longest time for one HTTP request, far above its deadline of some seconds: probes wait longer."""
FROZEN_SECONDS = 5.0
"""How much longer HAProxy waits for a replica that does not even say that time is up."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""To this machine, and so past the proxy of the environment, which is to see no API key."""
NOT_HANDED_ON = ("RAY_ADDRESS", haproxy.PROGRAM, haproxy.ANYWHERE)
"""Of the environment: the shop has a Ray of its own, and an HAProxy if it starts one."""
SOCKETS = "/tmp/rec-"
"""How the paths of folders begin that hold HAProxy's sockets: these have to be short, and a store's may be long."""
REQUEST = {"context": "a weekend of hiking in the mountains", "profile": {"height_cm": 181.0}, "k": 5}


class Shop:
    """The shop of one store: its folder holds the Serve configuration, the log and the port."""

    def __init__(self, store: Path) -> None:
        self.store = store.resolve()
        self.folder = self.store / "shop"
        self.record = self.folder / "port.json"
        self.log = self.folder / "serve.log"

    def processes(self) -> list[psutil.Process]:
        """Every process of the shop, the embedded Postgres aside."""
        return processes.marked(processes.SHOP, str(self.store))

    def port(self) -> int | None:
        """The port of the running shop; None when no process of it runs."""
        recorded = self._recorded()
        return int(recorded["port"]) if recorded and self.processes() else None

    def _recorded(self) -> dict[str, Any]:
        """What the last `launch` noted; empty after `end`."""
        return dict(json.loads(self.record.read_text(encoding="utf-8"))) if self.record.is_file() else {}

    def _forget(self) -> None:
        recorded = self._recorded()
        sockets = recorded.get("sockets")
        # a copy of another store names that one's; and a machine that started anew has emptied its folder
        if sockets is not None and recorded.get("store") == str(self.store) and sockets.startswith(SOCKETS):
            shutil.rmtree(sockets, ignore_errors=True)
        self.record.unlink(missing_ok=True)

    def last_words(self) -> list[str]:
        """The end of the log, and of what HAProxy said."""
        sockets = self._recorded().get("sockets")
        said = [self.log, *([] if sockets is None else sorted(Path(sockets).glob("*/*.stderr.log")))]
        return [line for file in said for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]]

    def launch(
        self, port: int, host: str = HOST, *, apart: bool = False, proxied_by: str | None = None
    ) -> psutil.Process:
        """Start `serve run` in a session of its own; `apart`: with processes for each stage; `proxied_by`: an HAProxy
        in place of Serve's own proxy. Of these the one that is there listens at `host`, and nothing else does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "serve.json"  # JSON is YAML
        artifact.write_json(
            config,
            {
                "http_options": {
                    "host": host if proxied_by is None else HOST,
                    "port": port,
                    "request_timeout_s": REQUEST_SECONDS,
                },
                "logging_config": {"enable_access_log": False},
                "applications": [{"name": "shop", "route_prefix": "/", "import_path": APART if apart else WHOLE}],
            },
        )
        environment = {name: value for name, value in os.environ.items() if name not in NOT_HANDED_ON}
        environment |= {
            "REC_STORE": str(self.store),
            processes.SHOP: str(self.store),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(OBJECT_STORE_BYTES),
            # three failed checks of a dead proxy bring another one: after half a minute with Serve's ten seconds
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
            # a proxy is given three times this to start: with Serve's five seconds a busy machine has no shop
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
            # what waits runs in threads of its own: a loop apart would only be two more for an answer to pass through
            processes.LOOP_APART: os.environ.get(processes.LOOP_APART, "0"),
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
        }
        self._forget()
        sockets = None
        if proxied_by is not None:
            sockets = _sockets()
            environment |= haproxy.environment(
                proxied_by,
                CHECKOUT / "serve" / "haproxy",
                Path(sockets),
                answers_within_s=REQUEST_SECONDS + FROZEN_SECONDS,
                public=host != HOST,
            )
        artifact.write_json(self.record, {"port": port, "store": str(self.store), "sockets": sockets})
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
        return psutil.Process(started.pid)

    def end(self) -> int:
        """Stop every process of the shop; returns how many there were."""
        family = outlived = self.processes()
        told: set[int] = set()
        for patience in (ORPHANED_SECONDS, STOP_SECONDS):
            mine = {process.pid for process in outlived}
            # `serve run`, which ends its Ray; later what has outlived its parent, such as Ray's agents where that was
            # killed. SIGINT may be ignored in the background
            orphans = [each for each in outlived if each.pid not in told and _parent(each) not in mine]
            for process in orphans:
                _signal(process.terminate)
            told |= {process.pid for process in orphans}
            _, outlived = psutil.wait_procs(outlived, timeout=patience)
        # who lost both its parent and its mark is found by no second look, and who came late is in no first one
        left = list({process.pid: process for process in [*outlived, *self.processes()]}.values())
        for process in left:
            _signal(process.kill)
        psutil.wait_procs(left, timeout=STOP_SECONDS)
        self._forget()
        return len(family)


def _sockets() -> str:
    parent, prefix = os.path.split(SOCKETS)
    try:
        return tempfile.mkdtemp(prefix=prefix, dir=parent)
    except OSError as error:
        raise ConfigError(f"no folder for HAProxy's sockets ({error}): start the shop with --proxy serve") from None


def _signal(send: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):  # it has just ended
        send()


def _parent(process: psutil.Process) -> int | None:
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return None


def start(
    config: Config, port: int, *, public: bool = False, apart: bool = False, proxy: str | None = None
) -> dict[str, Any]:
    """Start the shop on `port`, wait until it is ready, send one request.

    `public`: on all addresses of the machine; `apart`: with processes for each stage; `proxy`: as `haproxy.chosen` has
    it.
    """
    shop, host = Shop(Path(config.store)), ANYWHERE if public else HOST
    api_keys.check_bind(host, api_keys.access())
    exposures.share()  # raises ConfigError here, not in the shop's log
    proxied_by = haproxy.chosen(proxy)
    _check_startable(shop, port, host)
    _check_servable(shop, config)
    with artifact.alone(shop.folder):
        _check_startable(shop, port, host)  # another one that began meanwhile would lose its sockets as old ones
        process = shop.launch(port, host, apart=apart, proxied_by=proxied_by)
    try:
        _await_ready(shop, process, port)
        answer = _first_answer(shop, port)
    except BaseException:
        shop.end()
        raise
    for item in answer["items"]:
        print(f"  {item['score']:8.3f}  {item['title']}  ({', '.join(item['reasons'])})", file=sys.stderr)
    url = f"http://{HOST}:{port}/"
    return {"url": url, "bundle": answer["bundle"], "items": len(answer["items"]), "log": str(shop.log)}


def check(config: Config, port: int) -> dict[str, Any]:
    """Raise ConfigError when `start` could not have `port`, or the shop already runs."""
    _check_startable(Shop(Path(config.store)), port, HOST)
    return {"port": port, "free": True}


def _check_startable(shop: Shop, port: int, host: str) -> None:
    running = shop.port()
    if running is not None:
        raise ConfigError(f"the shop of {shop.store} already runs on port {running}: `make stop` ends it")
    _check_free(port, host)


def _check_servable(shop: Shop, config: Config) -> None:
    """What would keep the shop from starting, or have it show another recipe's products, is said here."""
    with postgres.session(postgres.url(shop.store, create=False)) as connection:
        migrations.require(connection)
        active = bundle.read(shop.store, promote.active(connection))
    bundle.verify(active)
    _ = active.config  # raises ArtifactError where this program cannot read it
    if active.recipe != config.name:
        raise ConfigError(
            f"the active bundle {active.id} of {shop.store} is of recipe {active.recipe!r}, not {config.name!r}: "
            f"run `python jobs/publish.py --recipe {config.name}` first"
        )


def _first_answer(shop: Shop, port: int) -> Any:
    try:
        return _call(port, "/v1/recommend", REQUEST)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _failure(shop, f"was ready and then did not answer a request ({error})") from error


def _check_free(port: int, host: str) -> None:
    if not 1 <= port <= 65_535:
        raise ConfigError(f"port {port} is not within 1 to 65535: choose another with PORT= or --port")
    error = ports.refused(host, port)
    if error is not None:
        raise ConfigError(f"port {port} on {host} cannot be had ({error}): choose another with PORT= or --port")


def _await_ready(shop: Shop, process: psutil.Process, port: int) -> None:
    """Return when /readyz answers 200; that is one real recommendation."""
    began = said = time.monotonic()
    print("waiting for the shop to answer", end="", file=sys.stderr, flush=True)
    while time.monotonic() - began < START_SECONDS:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise _failure(shop, "ended while starting")
        try:
            _call(port, "/readyz", None)
        except (OSError, ValueError, http.client.HTTPException):  # not listening yet, or 503: a part is still loading
            time.sleep(0.5)
        else:
            print(f" {time.monotonic() - began:.0f} s", file=sys.stderr)
            return
        if time.monotonic() - said > 2:
            print(".", end="", file=sys.stderr, flush=True)
            said = time.monotonic()
    raise _failure(shop, f"was not ready after {START_SECONDS:.0f} s")


def _call(port: int, path: str, body: Mapping[str, Any] | None) -> Any:
    headers = {"content-type": "application/json"}
    keys = api_keys.keys()
    if keys:
        headers["authorization"] = f"Bearer {keys[0]}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", data=data, headers=headers)
    with DIRECT.open(request, timeout=30) as response:
        return json.load(response)


def _failure(shop: Shop, what: str) -> RecError:
    """The error that the shop did `what`; the end of its log goes to stderr, as an error is one sentence."""
    print("", *shop.last_words(), sep="\n", file=sys.stderr)
    return RecError(f"the shop {what}: see {shop.log}")


def stop(config: Config) -> dict[str, Any]:
    """End the shop, and the embedded Postgres of its store unless others use it."""
    shop = Shop(Path(config.store))
    return {"processes": shop.end(), "postgres": _stop_postgres(shop.store)}


def _stop_postgres(store: Path) -> bool:
    """Whether the embedded Postgres was stopped; where REC_DATABASE_URL is set the shop had none."""
    if os.environ.get(postgres.URL_VARIABLE):
        return False
    deadline = time.monotonic() + PARTING_SECONDS
    while clients := postgres.embedded_clients(store):
        if time.monotonic() > deadline:
            print(f"the Postgres of {store} stays: {clients} connections of others use it", file=sys.stderr)
            return False
        time.sleep(0.1)
    return postgres.stop_embedded(store)


def status(config: Config) -> dict[str, Any]:
    """Whether the shop runs, and where."""
    port = Shop(Path(config.store)).port()
    return {"running": port is not None, "url": f"http://{HOST}:{port}/" if port else None}


def run(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Do what the first argument says."""
    if options.action == "check":
        return check(config, options.port)
    if options.action == "start":
        return start(config, options.port, public=options.public, apart=options.apart, proxy=options.proxy)
    return stop(config) if options.action == "stop" else status(config)


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("action", choices=("check", "start", "stop", "status"))
    arguments.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: 8000)")
    arguments.add_argument(
        "--public", action="store_true", help="start: on all addresses of the machine; REC_API_KEYS has to be set"
    )
    arguments.add_argument("--apart", action="store_true", help="start: a process for each stage, as on a cluster")
    arguments.add_argument(
        "--proxy",
        choices=(haproxy.HAPROXY, haproxy.SERVE),
        help="start: what hands requests to the replicas (default: the first)",
    )
    main(run, arguments)
