"""The shop as `make demo` starts it, one process behind HAProxy: who reaches what, what is said while the server is
gone, and how all of it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from jobs import shop as job
from rec import haproxy, postgres, processes
from rec.errors import ConfigError
from serve import api, problems
from serve.answering import LEAST_S
from serve.arrival import ARRIVED
from serve.fallible import DEADLINE_S
from tests.bundle import tiny
from tests.serve.conftest import REPOSITORY, Shop, frozen, published_in, starting
from tests.serve.ill import dripped, flooded, unread

pytestmark = pytest.mark.slow

WITHOUT = haproxy.binary() is None
ON_LINUX = pytest.mark.skipif(WITHOUT, reason="Ray has no HAProxy for this system")
UNAVAILABLE = {"error": "unavailable", "message": "the recommender cannot answer now; try again"}
CLIENTS = 6
SLOW = 20
LEFT, LEAVE, STAYED = "left", 30, "stayed"
LARGE = 10 * 2**20


@pytest.fixture(scope="module")
def proxied(new_store: Callable[[], Path]) -> Iterator[Shop]:
    yield from starting(published_in(new_store()))


def _haproxy(shop: Shop) -> psutil.Process:
    program = haproxy.binary()
    assert program is not None
    return _titled(shop, program)


def _titled(shop: Shop, title: str) -> psutil.Process:
    """The one that is left once others have been replaced: an HAProxy ends with its last caller, or in two minutes."""
    deadline = time.monotonic() + 150
    while True:
        found = [process for process in shop.processes().values() if _title(process).startswith(title)]
        if len(found) == 1:
            return found[0]
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def _title(process: psutil.Process) -> str:
    try:
        return next(iter(process.cmdline()), "")
    except psutil.NoSuchProcess:
        return ""


def _config(proxy: psutil.Process) -> Path:
    arguments = proxy.cmdline()
    return Path(arguments[arguments.index("-f") + 1])


@ON_LINUX
def test_haproxy_listens_at_the_shop_s_port_of_this_machine_and_nowhere_else(proxied: Shop) -> None:
    proxy = _haproxy(proxied)
    listening = {tuple(c.laddr) for c in proxy.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", httpx.URL(proxied.url).port)}
    sockets = [Path(c.laddr) for c in proxy.net_connections("unix") if c.laddr]
    assert len(sockets) >= 3, "its administration and its two pages"
    for path in sockets:
        assert not path.parent.parent.stat().st_mode & 0o077, "the folder is its owner's alone"


@ON_LINUX
def test_requests_are_told_to_ray_s_metrics_and_to_no_other_log(proxied: Shop) -> None:
    config = _config(_haproxy(proxied))
    logs = [line.split() for line in config.read_text(encoding="utf-8").splitlines() if line.split()[:1] == ["log"]]
    assert {log[1] for log in logs if log != ["log", "global"]} == {str(config.parent / "metrics.sock")}
    assert ["log", "global"] in logs, "of which there is none"


@ON_LINUX
def test_while_no_server_is_there_haproxy_says_so_in_the_api_s_form(proxied: Shop) -> None:
    folder = _config(_haproxy(proxied)).parent
    head, _, body = (folder / "unavailable.http").read_bytes().partition(b"\r\n\r\n")
    assert json.loads(body) == UNAVAILABLE
    assert f"retry-after: {problems.RETRY_S}".encode() in head.split(b"\r\n")
    assert f"content-length: {len(body)}".encode() in head.split(b"\r\n")


def test_what_the_shop_says_comes_through(proxied: Shop) -> None:
    answer = proxied.client.post("/v1/recommend", json={"k": 3}, headers={"x-request-id": "order-17"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "order-17")
    assert re.fullmatch(r"[0-9a-f-]{36}", proxied.client.get("/v1/bundles").headers["x-request-id"])
    large = proxied.client.post("/v1/recommend", content=b" " * (api.MAX_BODY_BYTES + 1))
    assert (large.status_code, large.json()["error"]) == (413, "body_too_large")
    larger = proxied.client.post("/v1/recommend", content=b" " * 10_000_000)
    assert (larger.status_code, larger.json()["error"]) == (413, "body_too_large"), "who still sends hears it, too"
    assert proxied.client.post("/v1/recommend", json={"k": 0}).status_code == 422
    assert proxied.client.get("/v1/nothing").status_code == 404
    assert proxied.client.get("/-/healthz").text == "success"


@ON_LINUX
def test_an_answer_that_comes_too_late_is_not_made_and_an_event_is_taken_all_the_same(proxied: Shop) -> None:
    server = _titled(proxied, "ray::ServeReplica:shop:Recommender")
    told = {"event_id": "waited", "client_id": "waits", "product_id": "P0003"}
    server.suspend()
    with ThreadPoolExecutor(3) as callers:
        began = time.monotonic()
        asked = [
            callers.submit(proxied.client.post, "/v1/recommend", json={"user_id": "u04", "k": 3}),
            callers.submit(proxied.client.post, "/v1/events", json={"events": [told]}),
            callers.submit(proxied.client.get, "/readyz"),
        ]
        time.sleep(max(0.0, began + DEADLINE_S - LEAST_S + 0.7 - time.monotonic()))
        server.resume()
        late, event, probe = (each.result() for each in asked)
    assert (late.status_code, late.json()["error"]) == (503, "overloaded")
    assert late.headers["retry-after"] == str(problems.RETRY_S)
    assert (event.status_code, event.json()["stored"]) == (200, ["waited"])
    assert probe.status_code == 200
    assert not proxied.recommend(user_id="u04", k=3)["degraded"]


@ON_LINUX
def test_what_the_server_is_told_of_a_request_is_haproxy_s_and_no_caller_s(proxied: Shop) -> None:
    said = {ARRIVED: "1000000", "x-request-timeout-seconds": "0.001", "x-request-disconnect-disabled": "?1"}
    for name, value in said.items():
        assert proxied.client.post("/v1/recommend", json={"k": 3}, headers={name: value}).status_code == 200, name
    config = _config(_haproxy(proxied)).read_text(encoding="utf-8")
    (first,) = re.findall(r"bind 127[.]0[.]0[.]1:.*\n((?:    http-request .*\n){4})", config)
    rules = re.findall(r"http-request (\S+) (\S+)", first)
    assert rules[:3] == [("set-header", ARRIVED), *(("del-header", name) for name in list(said)[1:])]
    assert rules[3:] == [("return", "status")]
    assert f"content-length) gt {api.MAX_BODY_BYTES} " in first, "as the API refuses it"


@ON_LINUX
def test_who_leaves_before_his_turn_gives_his_place_up(proxied: Shop) -> None:
    address, body = httpx.URL(proxied.url), json.dumps({"user_id": LEFT, "k": 100}).encode()
    head = "POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    asked = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    with frozen(proxied.recipe.store, postmaster=True):  # the threads that answer wait for it, the others for a thread
        callers = [socket.create_connection((address.host, address.port)) for _ in range(LEAVE)]
        for caller in callers:
            caller.sendall(asked)
        time.sleep(0.5)
        for caller in callers:
            caller.close()
        time.sleep(2.0)
    last = proxied.recommend(user_id=STAYED, k=3)["exposure_id"]
    deadline = time.monotonic() + 30
    while last not in _shown(proxied, STAYED):  # lists are logged in the order in which they were made
        assert time.monotonic() < deadline, "the list of who stayed is not logged"
        time.sleep(0.1)
    assert not _shown(proxied, LEFT), "lists that nobody gets"


def _shown(shop: Shop, user_id: str) -> list[str]:
    """The lists of a user that are logged."""
    stored = shop.client.get(f"/v1/users/{user_id}").json().get("exposures", [])
    return [each["exposure_id"] for each in stored]


@ON_LINUX
def test_large_bodies_of_callers_who_wait_are_not_kept_in_memory(proxied: Shop) -> None:
    server = _titled(proxied, "ray::ServeReplica:shop:Recommender")
    before = server.memory_info().rss

    def pour(chunked: bool) -> tuple[bool, int | None]:
        body = b" " * LARGE
        content = iter([body]) if chunked else body
        try:
            return chunked, httpx.post(f"{proxied.url}v1/recommend", content=content, timeout=60).status_code
        except httpx.RemoteProtocolError:
            return chunked, None  # what was not told to be large may be cut while it is sent

    with ThreadPoolExecutor(16) as callers:
        answers = set(callers.map(pour, [False, True] * 8))
    assert (False, 413) in answers
    assert answers <= {(False, 413), (True, 413), (True, None)}
    assert server.memory_info().rss - before < 4 * LARGE


def test_the_server_is_started_to_run_its_code_on_the_loop_that_receives(proxied: Shop) -> None:
    starter = _titled(proxied, "ray::ServeReplica:shop:Recommender").parent()
    assert starter is not None
    assert starter.environ()[processes.LOOP_APART] == "0"


@ON_LINUX
def test_a_head_that_is_too_long_is_refused_as_the_document_says(proxied: Shop) -> None:
    declared = proxied.client.get("/openapi.json").json()["paths"]["/v1/explain"]["get"]["responses"]["400"]["content"]
    for headers, query in (({}, "0" * 20_000), ({"x": "0" * 20_000}, "0")):
        answer = proxied.client.get(f"/v1/explain?product_id={query}", headers=headers)
        assert answer.status_code == 400
        assert answer.headers["content-type"] in declared
    assert proxied.client.get("/readyz", headers={"x": "0" * 14_000}).status_code == 200, "15 KiB, as it says"


@ON_LINUX
def test_who_sends_a_head_or_a_body_byte_by_byte_is_408_and_keeps_nobody_waiting(proxied: Shop) -> None:
    head = b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with ThreadPoolExecutor(2 * SLOW) as callers:
        slow = [
            callers.submit(dripped, proxied, begun, drop)
            for begun, drop in ((head, b"x: 1\r\n"), (head + b"content-length: 999\r\n\r\n", b" "))
            for _ in range(SLOW)
        ]
        while not all(each.done() for each in slow):
            assert proxied.recommend(user_id="u04", k=1)["items"]
            time.sleep(0.5)
    assert {each.result() for each in slow} == {b"HTTP/1.1 408"}


def test_of_a_flood_some_are_answered_and_the_others_told_when_to_ask_again(proxied: Shop) -> None:
    flooded(proxied)


def test_who_does_not_read_an_answer_keeps_nobody_waiting(proxied: Shop) -> None:
    unread(proxied)


def test_a_killed_server_leaves_nobody_without_an_answer(proxied: Shop) -> None:
    before = proxied.recommend(user_id="u04", k=5)
    said: list[httpx.Response] = []
    lost: list[Exception] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=proxied.url, timeout=60) as client:  # its connection is kept
            while not done.is_set():
                try:
                    said.append(client.post("/v1/recommend", json={"user_id": "u04", "k": 5}))
                except httpx.TransportError as error:
                    lost.append(error)

    callers = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for caller in callers:
        caller.start()
    time.sleep(1)
    _titled(proxied, "ray::ServeReplica").kill()
    struck, deadline = len(said), time.monotonic() + 120
    while not (len(said) > struck + 20 and all(answer.status_code == 200 for answer in said[-20:])):
        assert time.monotonic() < deadline, Counter(answer.status_code for answer in said)
        time.sleep(0.1)
    done.set()
    for caller in callers:
        caller.join()
    refused = [answer for answer in said if answer.status_code != 200]
    cut = [error for error in lost if "without sending complete message body" in str(error)]
    assert lost == cut, "what was not begun is said to have no server"
    assert len(cut) <= CLIENTS, "at most what the killed server was writing"
    assert refused or WITHOUT, "while there is no server nobody waits"
    for answer in refused:
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == str(problems.RETRY_S)
        assert WITHOUT or answer.json() == UNAVAILABLE
    assert proxied.recommend(user_id="u04", k=5)["items"] == before["items"]


@ON_LINUX
@pytest.mark.parametrize("victim", ["haproxy", "manager"])
def test_a_killed_haproxy_comes_back(proxied: Shop, victim: str) -> None:
    (_haproxy(proxied) if victim == "haproxy" else _titled(proxied, "ray::HAProxyManager")).kill()
    deadline, statuses, refused = time.monotonic() + 120, set[int](), 0
    while not (200 in statuses and refused):
        assert time.monotonic() < deadline, (statuses, refused)
        try:
            statuses.add(httpx.post(f"{proxied.url}v1/recommend", json={"k": 5}, timeout=60).status_code)
        except httpx.TransportError:
            refused += 1
            time.sleep(0.05)
    assert statuses <= {200, 503}, "while no server is known to it, it says that there is none"
    _haproxy(proxied)  # and no other is left


@pytest.fixture
def config(proxied: Shop, tmp_path: Path) -> Path:
    """HAProxy's configuration as Ray wrote it, for another folder."""
    there = _config(_haproxy(proxied))
    given = there.with_name(f"{there.name}.given").read_text(encoding="utf-8")
    mine = tmp_path / "haproxy.cfg"
    mine.write_text(given.replace(str(there.parent), str(tmp_path)), encoding="utf-8")
    return mine


def _start(config: Path, *command: str, public: bool = False) -> subprocess.CompletedProcess[str]:
    """What `serve/haproxy` does to a configuration, with `command` in place of HAProxy."""
    starter = REPOSITORY / "serve" / "haproxy"
    environment = haproxy.environment("/usr/bin/env", starter, config.parent, answers_within_s=25, public=public)
    environment |= {"PATH": "/usr/bin:/bin", "REC_SHOP": "here", "AWS_SECRET_ACCESS_KEY": "secret"}
    told = [starter, *command, "-f", config]
    return subprocess.run(told, env=environment, capture_output=True, text=True, check=False)


@ON_LINUX
@pytest.mark.parametrize("public", [False, True])
def test_haproxy_alone_listens_at_all_addresses_and_only_of_a_public_shop(config: Path, public: bool) -> None:
    (port,) = re.findall(r"bind 127[.]0[.]0[.]1:(\d+)", config.read_text(encoding="utf-8"))
    done = _start(config, "true", public=public)
    assert done.returncode == 0, done.stderr
    binds = re.findall(r"^ *bind (\S+)", config.read_text(encoding="utf-8"), re.MULTILINE)
    assert [bind for bind in binds if not bind.startswith("unix@")] == [f"{'*' if public else '127.0.0.1'}:{port}"]


@ON_LINUX
def test_haproxy_is_given_no_secret(config: Path) -> None:
    done = _start(config, "sh", "-c", "env")
    assert done.returncode == 0, done.stderr
    assert {line.partition("=")[0] for line in done.stdout.splitlines()} <= {"PATH", "REC_SHOP", "PWD", "SHLVL", "_"}
    assert "REC_SHOP=here" in done.stdout, "by which `stop` finds it"


@ON_LINUX
@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("    bind 127.0.0.1:", "    bind *:"),
        ("    bind :9101", "    bind :9102"),
        ("  bind *:8404", "  bind *:8405"),
        (" mode 666 level admin", " mode 660 level admin"),
        (" local0 info", " local7 info"),
        ("    errorfile 503 ", "    errorfile 400 "),
        ("    timeout http-keep-alive ", "    timeout http-keep-alive-of-another-name "),
        ("    http-reuse always", "    http-reuse safe"),
        (" check backup", " check backup weight 1"),
        ("    http-request return status 404 ", "    http-request return status 404.0 "),
        ("listen stats", "listen other\n    bind *:9999\nlisten stats"),
    ],
)
def test_a_configuration_that_is_not_known_is_not_started(config: Path, line: str, instead: str) -> None:
    given = config.read_text(encoding="utf-8")
    assert line in given
    config.write_text(given.replace(line, instead), encoding="utf-8")
    done = _start(config, "true")
    assert done.returncode == 1
    assert "--proxy serve" in done.stderr
    assert config.read_text(encoding="utf-8") == given.replace(line, instead), "it is left as it was"


@pytest.mark.long
@ON_LINUX
def test_a_public_graph_is_reached_through_haproxy_and_with_a_key(
    new_store: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REC_API_KEYS", "sesame-sesame-sesame")
    for shop in starting(published_in(new_store()), "--apart", "--public"):
        proxy, port = _haproxy(shop), httpx.URL(shop.url).port
        assert {tuple(c.laddr) for c in proxy.net_connections("inet") if c.status == psutil.CONN_LISTEN} == {
            ("0.0.0.0", port)
        }
        replica = _titled(shop, "ray::ServeReplica:shop:Recommender")
        asked = {c.laddr.ip for c in replica.net_connections("inet") if 30_000 <= c.laddr.port < 31_000}
        assert asked == {"127.0.0.1"}
        assert shop.client.get("/v1/bundles").status_code == 401
        shop.client.headers["authorization"] = "Bearer sesame-sesame-sesame"
        assert shop.recommend(user_id="u04", k=5)["degraded"] == []


def test_where_there_is_no_haproxy_to_ask_for_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(haproxy, "binary", lambda: None)
        with pytest.raises(ConfigError, match=r"HAProxy is not installed.*--proxy serve"):
            job.start(tiny.config(tmp_path), 8000, proxy="haproxy")
    if not WITHOUT:
        monkeypatch.setenv(haproxy.OVERRIDE, str(tmp_path / "nothing"))
        with pytest.raises(ConfigError, match=r"is no program"):
            job.start(tiny.config(tmp_path), 8000)


def test_stop_ends_the_shop_and_nothing_else(proxied: Shop) -> None:
    record = proxied.recipe.root.parent / "shop" / "port.json"
    folder = json.loads(record.read_text(encoding="utf-8"))["sockets"]
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


def test_the_sockets_of_another_store_stay(tmp_path: Path) -> None:
    sockets = job._sockets()
    record = tmp_path / "shop" / "port.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"port": 8000, "store": "/elsewhere", "sockets": sockets}), encoding="utf-8")
    assert job.Shop(tmp_path).end() == 0
    assert Path(sockets).is_dir()
    assert not record.exists()
    Path(sockets).rmdir()
