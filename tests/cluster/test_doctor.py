"""jobs/doctor.py: what is wrong is found, with what to do, and no secret is printed."""

import json
import logging
import runpy
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import psutil
import psycopg
import pytest

from rec import config, doctor, pipeline, ports, postgres, runtime
from rec.config import Config
from rec.config.recipes import _keys
from rec.doctor import Finding
from rec.errors import ConfigError, DatabaseError

PASSWORD = "hunter2"


def recipe(*overrides: str) -> Config:
    return config.load("demo", overrides)


def healthy(finding: Finding) -> bool:
    """Whether nothing is to be done; whoever finds something says what to do."""
    assert (finding.remedy == "") == (finding.state == "ok"), finding
    return finding.state == "ok"


def test_the_job_names_a_database_that_is_down_and_fails_without_its_password(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REC_DATABASE_URL", f"postgresql://shop:{PASSWORD}@127.0.0.1:1/shop")
    monkeypatch.setenv("REC_LLM_API_KEY", PASSWORD)
    room = shutil.disk_usage(tmp_path)._replace(free=2 * doctor.GOOD_DISK)  # that of this machine is its own
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", PASSWORD)
    monkeypatch.setattr(sys, "argv", ["doctor.py", "--set", f"store={tmp_path / 'none'}", "--port", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(repository / "jobs" / "doctor.py"), run_name="__main__")
    assert ended.value.code == 1
    said = capfd.readouterr()
    found = json.loads(said.out)
    states = {finding["check"]: finding["state"] for finding in found["checks"]}
    assert states["postgres"] == "fail"
    assert states["python"] == states["torch"] == states["ray"] == states["ray token"] == states["store"] == "ok"
    assert found["fail"] == sum(state == "fail" for state in states.values())
    assert "-> check REC_DATABASE_URL" in said.err
    assert PASSWORD not in said.out + said.err
    assert list(tmp_path.iterdir()) == [], "looking made something"


@pytest.mark.parametrize(
    "url", [f"postgresql://shop:{PASSWORD}@127.0.0.1:port/shop", f"host=x.invalid password={PASSWORD}"]
)
def test_a_malformed_url_is_a_finding_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(postgres.URL_VARIABLE, url)
    finding, clock = doctor.database(Path())
    assert finding.state == "fail"
    assert PASSWORD not in finding.found + finding.remedy
    assert finding.remedy == "check REC_DATABASE_URL"
    assert (clock.check, clock.state, clock.found) == ("clock", "warn", "not compared with Postgres's")


def test_a_good_database_gives_versions_and_a_clock(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(postgres.URL_VARIABLE, database_url)
    first, second = doctor.database(Path())
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    assert row is not None
    assert healthy(first)
    assert f"with pgvector {row[0]}" in first.found
    assert (second.check, second.state) == ("clock", "ok")


def test_an_old_pgvector_is_a_finding(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS doctor")
        connection.execute("CREATE DATABASE doctor")
    url = psycopg.conninfo.make_conninfo(database_url, dbname="doctor")
    with postgres.connect(url) as opened:
        opened.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    monkeypatch.setenv(postgres.URL_VARIABLE, url)
    assert doctor.database(Path()) == [
        Finding("postgres", "fail", "pgvector 0.7.4 is too old", "0.8.4 or later is needed"),
        doctor.UNCOMPARED,
    ]


def test_the_embedded_database_is_not_started(tmp_path: Path) -> None:
    (finding,) = doctor.database(tmp_path)
    assert healthy(finding)
    assert "does not run now" in finding.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "state"), [(0.0, "ok"), (2.0, "ok"), (5.0, "warn"), (61.0, "fail")])
def test_clocks(seconds: float, state: str) -> None:
    finding = doctor.clock(seconds)
    assert finding.state == state
    assert healthy(finding) == (state == "ok")


def test_python_before_3_11_is_refused() -> None:
    assert healthy(doctor.python((3, 11)))
    assert healthy(doctor.python((3, 13)))
    assert doctor.python((3, 10)).state == "fail"


def test_a_gpu_that_is_asked_for_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asking = recipe("text.use_gpu=true", "ranker.train.use_gpu=true", "ranker.train.num_workers=2")
    assert healthy(doctor.torch(recipe(), local=True))
    here, there = (doctor.torch(asking, local=local) for local in (True, False))
    assert here.state == "fail"
    assert "text.use_gpu asks for 1, ranker.train.use_gpu asks for 2" in here.found
    assert there.state == "warn"


def test_every_option_that_asks_for_gpus_is_known() -> None:
    """Those of the fit head only where the recipe has one."""
    options = {name for name in _keys(Config) if name.endswith(".use_gpu")}
    assert len(options) > 3
    assert doctor.gpus(recipe(*(f"{name}=true" for name in options), "fit.enabled=true")).keys() == options
    assert doctor.gpus(recipe("fit.train.use_gpu=true", "fit.enabled=false")) == {}


@pytest.mark.slow
def test_a_chain_does_not_begin_without_the_gpus_that_it_asks_for(
    tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    asking = recipe(f"store={store}", "text.use_gpu=true", "text.num_actors=99")
    with pytest.raises(ConfigError, match=r"text\.use_gpu asks for 99 GPUs, and Ray sees"):
        pipeline.run(asking)
    assert not store.exists(), "work had begun"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with caplog.at_level(logging.WARNING):
        doctor.before_work(asking)
    assert "this waits until the cluster has as many" in caplog.text


def test_a_chain_does_not_begin_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "available_memory", lambda: doctor.GIB // 2)
    with pytest.raises(ConfigError, match=r"memory: 0\.5 GiB available: end other programs"):
        pipeline.run(recipe(f"store={tmp_path / 'store'}"))
    assert list(tmp_path.iterdir()) == []


def test_a_chain_does_not_begin_without_the_database_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(postgres.URL_VARIABLE, "postgresql://shop:hunter2@127.0.0.1:1/shop")
    with pytest.raises(DatabaseError, match=r"does not answer .* check REC_DATABASE_URL"):
        pipeline.run(recipe(f"store={tmp_path / 'store'}"))
    assert list(tmp_path.iterdir()) == []


def test_scarce_memory_and_shared_memory_are_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime, "available_memory", lambda: 2 * doctor.GIB)
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")
    with caplog.at_level(logging.WARNING):
        doctor.before_work(recipe(f"store={tmp_path}"))
    assert "memory: 2.0 GiB available" in caplog.text
    assert "shared memory: no " in caplog.text


def test_tokens(tmp_path: Path) -> None:
    at = {"RAY_ADDRESS": "head:6379"}
    assert healthy(doctor.token({}, tmp_path)), "a local Ray makes its own"
    assert healthy(doctor.token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": PASSWORD, **at}, tmp_path))
    without_mode = doctor.token({"RAY_AUTH_TOKEN": PASSWORD, **at}, tmp_path)
    assert (without_mode.state, without_mode.remedy) == ("warn", "set RAY_AUTH_MODE=token")
    assert PASSWORD not in without_mode.found
    assert doctor.token(at, tmp_path).state == "fail"
    assert doctor.token({"RAY_AUTH_MODE": "disabled"}, tmp_path).state == "warn"
    assert doctor.token({"RAY_AUTH_MODE": "disabled", **at}, tmp_path).state == "fail"
    assert doctor.token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, tmp_path).state == "fail"
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.touch(0o600)
    assert "empty" in doctor.token(at, tmp_path).found
    path.write_text(PASSWORD)
    assert healthy(doctor.token(at, tmp_path))
    path.chmod(0o644)
    loose = doctor.token(at, tmp_path)
    assert (loose.state, loose.remedy) == ("warn", f"chmod 600 {path}")
    assert PASSWORD not in loose.found


def test_clusters(tmp_path: Path) -> None:
    def found(address: str) -> Finding:
        return doctor.cluster({"RAY_ADDRESS": address}, tmp_path)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            assert healthy(found(address))
            assert "token not tried" in found(address).found
    assert healthy(doctor.cluster({}, tmp_path))
    assert healthy(found("auto"))
    assert "does not answer" in found(f"127.0.0.1:{port}").found
    assert found("head").state == found("head:port").state == "fail"


@contextmanager
def dashboard(version: str, token: str | None) -> Iterator[str]:
    """The address of what answers as a head's dashboard does, to who has the token."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            refused = 401 if given is None else 403
            status = 404 if self.path != "/api/version" else 200 if token in (None, (given or "")[7:]) else refused
            self.send_response(status)
            self.end_headers()
            if status == 200:
                self.wfile.write(json.dumps({"version": "4", "ray_version": version}).encode())

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_dashboard_that_is_named_is_told_the_token_and_asked_for_its_version(tmp_path: Path) -> None:
    here = metadata.version("ray")
    right, wrong = {"RAY_AUTH_TOKEN": PASSWORD}, {"RAY_AUTH_TOKEN": "another"}
    with dashboard(here, PASSWORD) as address, socket.create_server(("127.0.0.1", 0)) as head:
        found = doctor.cluster({"RAY_ADDRESS": address, **right}, tmp_path)
        assert healthy(found)
        assert f"takes the token and runs Ray {here}" in found.found
        both = {"RAY_ADDRESS": f"127.0.0.1:{head.getsockname()[1]}", "RAY_API_SERVER_ADDRESS": address}
        assert "takes the token" in doctor.cluster({**both, **right}, tmp_path).found
        refused = doctor.cluster({**both, **wrong}, tmp_path)
        assert (refused.state, "does not take this token (403)" in refused.found) == ("fail", True)
        assert "asks for a token, and there is none (401)" in doctor.cluster(both, tmp_path).found
        path = tmp_path / ".ray" / "auth_token"
        path.parent.mkdir()
        path.write_text(f"{PASSWORD}\n")
        assert healthy(doctor.cluster(both, tmp_path))
        strange = doctor.cluster({"RAY_ADDRESS": f"{address}/elsewhere"}, tmp_path)
        assert (strange.state, "is no dashboard of Ray's (404)" in strange.found) == ("fail", True)
    gone = doctor.cluster({"RAY_ADDRESS": address.replace("//", f"//shop:{PASSWORD}@"), **right}, tmp_path)
    assert (gone.state, "does not answer" in gone.found) == ("fail", True)
    assert PASSWORD not in "".join(each.found + each.remedy for each in (found, refused, strange, gone))
    with dashboard("2.9.0", None) as address:
        found = doctor.cluster({"RAY_ADDRESS": address}, tmp_path)
        assert (found.state, found.found) == ("fail", f"it runs Ray 2.9.0, and here is {here}")
    with dashboard(here, None) as address:
        (tmp_path / ".ray" / "auth_token").unlink()
        assert doctor.cluster({"RAY_ADDRESS": address}, tmp_path).state == "warn"


def test_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(left: int) -> Callable[[object], object]:
        return lambda _: type("Usage", (), {"free": left})

    monkeypatch.setattr(doctor.shutil, "disk_usage", free(100 * doctor.GIB))
    assert healthy(doctor.disk(tmp_path))
    new = doctor.disk(tmp_path / "a" / "b")
    assert healthy(new)
    assert "made by the first job" in new.found
    (tmp_path / "file").touch()
    assert doctor.disk(tmp_path / "file").state == "fail"
    assert doctor.disk(tmp_path / "file" / "below").state == "fail"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "cannot be written to" in doctor.disk(tmp_path).found
    monkeypatch.undo()
    for left, state in ((doctor.GIB // 2, "fail"), (5 * doctor.GIB, "warn")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", free(left))
        assert doctor.disk(tmp_path).state == state
    assert doctor.shared_memory(tmp_path).state == "ok"
    monkeypatch.setattr(doctor.shutil, "disk_usage", free(64 * 2**20))  # what a container has unless told otherwise
    assert "--shm-size" in doctor.shared_memory(tmp_path).remedy
    assert doctor.shared_memory(tmp_path / "none").state == "warn"


def test_memory() -> None:
    assert healthy(doctor.memory(8 * doctor.GIB))
    assert doctor.memory(1 * doctor.GIB).state == "warn"
    assert doctor.memory(doctor.GIB // 2).state == "fail"
    assert 0 < runtime.available_memory() <= psutil.virtual_memory().total


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert healthy(doctor.language_model(recipe()))
    assert healthy(doctor.encoder(recipe()))
    hosted = recipe("enrich.engine=openai", "enrich.model=qwen3-8b")
    monkeypatch.delenv("REC_LLM_API_KEY", raising=False)
    assert doctor.language_model(hosted).state == "fail", "OpenAI's own endpoint asks for one"
    assert healthy(doctor.language_model(recipe("enrich.engine=openai", 'enrich.base_url="http://127.0.0.1:1/v1"')))
    monkeypatch.setenv("REC_LLM_API_KEY", PASSWORD)
    with_key = doctor.language_model(hosted)
    assert healthy(with_key)
    assert PASSWORD not in with_key.found
    for there in ("someone/no-such-encoder", "no such name at all"):
        assert doctor.encoder(recipe(f"text.encoder={there}")).state == "warn"
    assert healthy(doctor.encoder(recipe(f"text.encoder={tmp_path}")))
    hosted = recipe("enrich.engine=vllm", "enrich.model=Qwen/Qwen3-8B")
    assert doctor.language_model(hosted).state == "fail"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert doctor.language_model(hosted).state == "warn", "only the cluster's GPU nodes need it"
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    missing = doctor.language_model(recipe())
    assert (missing.state, "pip install" in missing.remedy) == ("fail", True)
    assert healthy(doctor.language_model(recipe("enrich.max_calls=0")))


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert doctor.free_port(port).state == "warn"
        assert ports.public([port]) == {}
    assert healthy(doctor.free_port(port))
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        assert ports.public([port, 1]) == {port: "0.0.0.0"}


def test_what_every_process_of_ray_would_wait_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.util, "find_spec", lambda _: None)
    (well,) = doctor.ray({})
    assert healthy(well)
    monkeypatch.undo()
    (tmp_path / f"{doctor.SLOW_IMPORT}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    told, slow = doctor.ray({"RAY_USAGE_STATS_ENABLED": "1"})
    assert told.state == slow.state == "warn"
    assert "RAY_USAGE_STATS_ENABLED" in told.remedy
    assert f"pip uninstall {doctor.SLOW_IMPORT}" in slow.remedy


def test_a_ray_head_that_others_reach_needs_a_token_and_the_api_is_pointed_out() -> None:
    head = {doctor.DASHBOARD: "0.0.0.0"}
    assert healthy(doctor.exposure({}, 8000, {}))
    assert doctor.exposure(head, 8000, {}).state == "fail"
    assert healthy(doctor.exposure(head, 8000, {"RAY_AUTH_MODE": "token"}))
    assert doctor.exposure({8000: "0.0.0.0"}, 8000, {"RAY_AUTH_MODE": "token"}).state == "warn"
    with_keys = doctor.exposure({8000: "0.0.0.0"}, 8000, {"REC_API_KEYS": PASSWORD})
    assert healthy(with_keys)
    assert PASSWORD not in with_keys.found


def test_a_check_that_breaks_hides_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_: int) -> Finding:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "memory", broken)
    found = doctor.run(recipe(f"store={tmp_path}"), port=8000)
    (memory,) = [finding for finding in found["checks"] if finding["check"] == "memory"]
    assert memory["state"] == "fail"
    assert "ZeroDivisionError" in memory["found"]
    assert len(found["checks"]) > 10
