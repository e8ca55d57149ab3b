"""A published recipe, served by nobody, by a chain or by all stages in this process, and by the real shop."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rec import bundle, ports, postgres, publish
from rec.bundle import Bundle
from rec.config import Config
from rec.index.connections import Connections
from rec.recommend.chain import Chain
from serve import searching
from serve.answering import Answering
from serve.asking import Together
from serve.exposures import ExposureLog
from serve.fallible import BackedFront
from tests.bundle import tiny
from tests.serve.collector import Collector, collecting

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Shop:
    """The running demo shop."""

    recipe: Config
    url: str
    client: httpx.Client

    def job(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run jobs/shop.py on the shop's store."""
        return shop_job(self.recipe, *arguments)

    def processes(self) -> dict[str, psutil.Process]:
        """The shop's processes by name; Ray titles replicas after their deployment."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get("REC_SHOP") == self.recipe.store:
                    for each in [process, *process.children(recursive=True)]:
                        found[each.name() + str(each.pid)] = each
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                continue
        return found

    def recommend(self, **body: Any) -> dict[str, Any]:
        """The answer to a request that must succeed."""
        answer = self.client.post("/v1/recommend", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def shop_job(recipe: Config, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run jobs/shop.py."""
    options = ["--set", f"store={recipe.store}", "--set", f"name={recipe.name}"]
    command = [sys.executable, "jobs/shop.py", *arguments, *options]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@contextmanager
def frozen(store: str, *, postmaster: bool) -> Iterator[None]:
    """Meanwhile no process of the embedded Postgres runs; without `postmaster`, new ones for new connections do."""
    pid = int((Path(store) / "postgres" / "postmaster.pid").read_text(encoding="ascii").split()[0])
    found = psutil.Process(pid)
    processes = [*([found] if postmaster else []), *found.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@contextmanager
def damaged(found: Bundle) -> Iterator[str]:
    """Meanwhile one byte of a file, whose name this is, is another one."""
    name = next(name for name in found.files if name.startswith("ranker/") and name.endswith(".safetensors"))
    path = found.path / name
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        yield name
    finally:
        path.write_bytes(content)


def published_in(store: Path) -> Config:
    """The tiny recipe, made and published in a store."""
    recipe = tiny.make(tiny.config(store.resolve(), fit=True))
    publish.run(recipe)
    return recipe


@pytest.fixture(scope="session")
def published(new_store: Callable[[], Path]) -> Config:
    """A recipe whose bundle is active in the embedded database of its own store."""
    return published_in(new_store())


@pytest.fixture(scope="session")
def connections(published: Config) -> Iterator[Connections]:
    """Connections of this process to the recipe's database."""
    opened = Connections(postgres.url(published.store), size=2)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def chain(published: Config, connections: Connections) -> Chain:
    """The whole chain in this process."""
    (name,) = bundle.names(published.store)
    return Chain(bundle.read(published.store, name), connections)


@pytest.fixture(scope="module")
def own(new_store: Callable[[], Path]) -> Config:
    """A published recipe of one module's tests alone: stages look for the next bundle as long as they live."""
    return published_in(new_store())


@pytest.fixture(scope="module")
def opened(own: Config) -> Iterator[Connections]:
    """Connections of this process to its database, more than searches take at once."""
    pool = Connections(postgres.url(own.store), size=2 * searching.AT_ONCE)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def front(own: Config, opened: Connections) -> BackedFront:
    """What a request is checked and answered with."""
    (name,) = bundle.names(own.store)
    return BackedFront(bundle.read(own.store, name), opened)


@pytest.fixture(scope="module")
def together(own: Config) -> Together:
    """All stages in this process."""
    return Together(own.store)


@pytest.fixture(scope="module")
def answering(own: Config, together: Together) -> Iterator[Answering]:
    """Who answers by them, and logs what was shown."""
    log = ExposureLog(lambda: Connections(postgres.url(own.store), size=1), lambda *_: None)
    yield Answering(together, log)
    log.close()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the shop's traces go."""
    with collecting() as opened:
        yield opened


@pytest.fixture(scope="session")
def shop(published: Config, collector: Collector) -> Iterator[Shop]:
    """The graph of a cluster behind Serve's own proxy: its stages can fail one by one.

    Requests are traced whose caller traces them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH", "rec.tracing:otlp")
        patch.setenv("RAY_SERVE_TRACING_SAMPLING_RATIO", "0")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        started = starting(published, "--apart", "--proxy", "serve")
        shop = next(started)
    yield shop
    next(started, None)


def starting(recipe: Config, *how: str) -> Iterator[Shop]:
    """The shop of a published recipe, and at the end it is stopped."""
    done = shop_job(recipe, "start", "--port", str(ports.free()), *how)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    with httpx.Client(base_url=said["url"], timeout=60) as client:
        yield Shop(recipe, said["url"], client)
    shop_job(recipe, "stop")
