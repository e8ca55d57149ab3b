"""The shop as `make demo` starts it, one process behind HAProxy: who reaches what, what is said while the server is
gone, and how all of it ends."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from jobs import shop as job
from rec import haproxy, postgres
from rec.errors import ConfigError
from tests.bundle import tiny
from tests.serve.conftest import REPOSITORY, Shop, published_in, starting

pytestmark = pytest.mark.slow

WITHOUT = haproxy.binary() is None


@pytest.fixture(scope="module")
def proxied(new_store: Callable[[], Path]) -> Iterator[Shop]:
    yield from starting(published_in(new_store()))


def _named(shop: Shop, name: str) -> list[psutil.Process]:
    return [process for process in shop.processes().values() if name in process.name()]


@pytest.mark.skipif(WITHOUT, reason="Ray has no HAProxy for this system")
def test_haproxy_listens_at_the_shop_s_port_of_this_machine_and_nowhere_else(proxied: Shop) -> None:
    (proxy,) = _named(proxied, "haproxy")
    listening = {tuple(c.laddr) for c in proxy.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", httpx.URL(proxied.url).port)}
    sockets = [Path(c.laddr) for c in proxy.net_connections("unix") if c.laddr]
    assert len(sockets) >= 3, "its administration and its two pages"
    for socket in sockets:
        assert not socket.parent.parent.stat().st_mode & 0o077, "the folder is its owner's alone"


@pytest.mark.skipif(WITHOUT, reason="Ray has no HAProxy for this system")
def test_its_log_has_no_path_of_a_request(proxied: Shop) -> None:
    (proxy,) = _named(proxied, "haproxy")
    arguments = proxy.cmdline()
    config = Path(arguments[arguments.index("-f") + 1])
    written = config.read_text(encoding="utf-8")
    targets = [line.split() for line in written.splitlines() if line.split()[:1] == ["log"]]
    assert {target[1] for target in targets if len(target) > 2} == {str(config.parent / "metrics.sock")}
    (form,) = [line for line in written.splitlines() if "log-format" in line]
    assert "%HP" not in form
    assert "%HU" not in form


def test_a_killed_server_leaves_nobody_without_an_answer(proxied: Shop) -> None:
    before = proxied.recommend(user_id="u04", k=5)
    (server,) = [process for process in _named(proxied, "ray::") if "ServeReplica" in process.cmdline()[0]]
    server.kill()
    said = []
    deadline = time.monotonic() + 120
    while not said or said[-1].status_code != 200:
        assert time.monotonic() < deadline, said
        said.append(httpx.post(f"{proxied.url}v1/recommend", json={"user_id": "u04", "k": 5}, timeout=60))
    refused = said[:-1]
    assert {answer.status_code for answer in refused} <= {503}
    for answer in refused:
        assert answer.json() == {"error": "unavailable", "message": "the recommender cannot answer now; try again"}
        assert answer.headers["retry-after"] == "2"
    assert said[-1].json()["items"] == before["items"]


@pytest.mark.skipif(WITHOUT, reason="Ray has no HAProxy for this system")
def test_a_killed_haproxy_comes_back(proxied: Shop) -> None:
    for proxy in _named(proxied, "haproxy"):  # one that is replaced ends by and by
        proxy.kill()
    deadline, statuses = time.monotonic() + 120, set[int]()
    while 200 not in statuses:
        assert time.monotonic() < deadline, statuses
        try:
            statuses.add(httpx.post(f"{proxied.url}v1/recommend", json={"k": 5}, timeout=60).status_code)
        except httpx.TransportError:
            time.sleep(0.05)
    assert statuses <= {200, 503}, "while no server is known to it, it says that there is none"


@pytest.mark.skipif(WITHOUT, reason="Ray has no HAProxy for this system")
def test_a_configuration_that_is_not_known_is_not_started(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("frontend prometheus\n    bind 0.0.0.0:9101\n", encoding="utf-8")
    environment = haproxy.environment("/bin/true", REPOSITORY / "serve" / "haproxy", tmp_path)
    done = subprocess.run(
        [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)],
        env=environment | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "--proxy serve" in done.stderr
    assert "0.0.0.0" in config.read_text(encoding="utf-8"), "it is left as it was"


def test_where_there_is_no_haproxy_to_ask_for_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy, "binary", lambda: None)
    with pytest.raises(ConfigError, match=r"HAProxy is not installed.*--proxy serve"):
        job.start(tiny.config(tmp_path), 8000, proxy="haproxy")


def test_stop_ends_the_shop_and_nothing_else(proxied: Shop) -> None:
    sockets = proxied.recipe.root.parent / "shop" / "port.json"
    folder = json.loads(sockets.read_text(encoding="utf-8"))["sockets"]
    assert WITHOUT or Path(folder).is_dir()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    driver = min((p for p in proxied.processes().values()), key=lambda process: process.create_time())
    with psycopg.connect(postgres.url(proxied.recipe.store)):
        driver.send_signal(signal.SIGKILL)  # as rudely as can be
        done = proxied.job("stop")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["postgres"] is False, "this process still uses it"
        assert "connections of others use it" in done.stderr
    assert json.loads(proxied.job("stop").stdout) == {"processes": 0, "postgres": True}
    assert proxied.processes() == {}
    assert WITHOUT or not Path(folder).exists()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert json.loads(proxied.job("status").stdout) == {"running": False, "url": None}
    assert json.loads(proxied.job("stop").stdout) == {"processes": 0, "postgres": False}
