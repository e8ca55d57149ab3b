"""A loader or a Postgres killed at any moment: the database is then as before the publish or as after it."""

import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import psycopg
import pytest

from rec import bundle, bundles, postgres, publish
from rec.config import Config
from rec.index import promote
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex
from tests.bundle import tiny

ROUNDS, SEED = 20, 17
PATIENCE_S = 60.0
SOLD_AT = 1.0
"""The price of every product while the old bundle is active; the new one comes with other ones."""

LOADER = """
import sys
import torch
from rec import publish, queries
from rec.errors import RecError
from tests.bundle import tiny
recipe = tiny.config(sys.argv[1], seed=2)
print("ready", flush=True)
for _ in sys.stdin:
    try:
        publish.run(recipe)
    except RecError as error:
        print(type(error).__name__, error, flush=True)
    else:
        print("done", flush=True)
"""


class Loader:
    """A process that publishes the new bundle each time that it is told to, with all it needs imported before."""

    def __init__(self, store: Path) -> None:
        command = [sys.executable, "-c", LOADER, str(store)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._ready = False

    def begin(self) -> None:
        """Have it publish."""
        if not self._ready:
            assert self.said() == "ready"
            self._ready = True
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def said(self, within_s: float = PATIENCE_S) -> str | None:
        """The next line that it prints; None where there is none within that time."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], within_s)[0]:
            return None
        return self.process.stdout.readline().decode().strip()

    def timed(self) -> float:
        """Seconds of a publish that nobody disturbs."""
        self.begin()
        began = time.monotonic()
        assert self.said() == "done"
        return time.monotonic() - began

    def end(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()


@dataclass(frozen=True)
class Shop:
    """A store whose embedded server is killed, and the two bundles of it."""

    store: Path
    old: str
    new: str

    @property
    def recipe(self) -> Config:
        """The recipe that the new bundle is published by."""
        return tiny.config(self.store, seed=2)

    def as_before(self) -> None:
        """The old bundle active, the new one unknown to database and store, and products and shoppers to be loaded."""
        publish.rollback(self.recipe)
        bundles.collect(self.recipe)
        with psycopg.connect(postgres.url(self.store)) as connection:
            connection.execute("UPDATE products SET price = %s", (SOLD_AT,))
            connection.execute("UPDATE loads SET content_hash = 'of before'")


@pytest.fixture
def shop(new_store: Callable[[], Path]) -> Iterator[Shop]:
    """The old bundle is active, and the artifacts of the new one are finished."""
    store = new_store()
    old = publish.run(tiny.make(tiny.config(store, seed=1)))["bundle"]
    new = publish.run(tiny.make(tiny.config(store, seed=2)))["bundle"]
    made = Shop(store, old, new)
    made.as_before()
    yield made
    postgres.url(store)  # so that it is there to be stopped


@pytest.mark.long
def test_old_or_new_and_never_between(shop: Shop) -> None:
    rng = np.random.default_rng(SEED)
    loader, interrupted, found = Loader(shop.store), 0, []
    try:
        for number in range(ROUNDS):
            took = loader.timed()
            shop.as_before()
            assert active_when_sound(shop) == shop.old
            loader.begin()
            # one point in each part of the time, for each of the two victims
            time.sleep(took * (number // 2 + rng.random()) / (ROUNDS // 2))
            if number % 2:
                ended = shop_without_postgres(shop, loader)
            else:
                ended = loader.said(0) is not None
                loader.end()
                loader = Loader(shop.store)
                until_nobody_works(shop)
            interrupted += not ended
            found.append(active_when_sound(shop))
            loader.timed()
            assert active_when_sound(shop) == shop.new
            shop.as_before()
    finally:
        loader.end()
    print(f"{interrupted} of {ROUNDS} interrupted, {found.count(shop.new)} times the new bundle was active")
    assert interrupted >= ROUNDS / 2


def shop_without_postgres(shop: Shop, loader: Loader) -> bool:
    """SIGKILL the server while the loader works, and start it again; whether the loader had ended before.

    The loader says that the database failed, or goes on with the server that is up again.
    """
    said = loader.said(0)
    crash(shop.store)
    postgres.url(shop.store)
    ended = said is not None
    said = said or loader.said()
    assert said is not None
    assert said == "done" or said.startswith("DatabaseError "), said
    return ended


def crash(store: Path) -> None:
    """SIGKILL the server and all its processes, as where the machine fails; stopped first, it starts no other ones."""
    server = psutil.Process(int((store / "postgres" / "postmaster.pid").read_text(encoding="ascii").split()[0]))
    server.suspend()
    dying = [server, *server.children()]
    for process in dying:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(dying, timeout=PATIENCE_S)
    assert alive == []


def until_nobody_works(shop: Shop) -> None:
    """A server's process goes on with its statement for a while after its client died."""
    deadline = time.monotonic() + PATIENCE_S
    while postgres.embedded_clients(shop.store):
        assert time.monotonic() < deadline, "a dead client's work goes on"
        time.sleep(0.02)


def active_when_sound(shop: Shop) -> str:
    """Id of the active bundle, when all that must be so at any time is so: what is active is whole, and nothing else
    is there in part."""
    with psycopg.connect(postgres.url(shop.store)) as connection:
        active = promote.found_active(connection)
        known = {each["bundle"] for each in promote.known(connection)}
        rows = connection.execute("SELECT substr(relname, 7) FROM pg_class WHERE relkind = 'r' AND relname ~ '^items_'")
        tables = {name for (name,) in rows}
        prices = connection.execute("SELECT min(price), max(price) FROM products").fetchone()
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM products), (SELECT count(*) FROM users), count(*) FROM events"
        ).fetchone()
    assert active in (shop.old, shop.new)
    assert known == tables, "a table without an entry, or an entry without a table"
    assert {shop.old, active} <= known <= {shop.old, shop.new}
    assert prices == ((SOLD_AT, SOLD_AT) if active == shop.old else (10.0, 9.0 + tiny.ITEMS))
    assert counts == (tiny.ITEMS, tiny.SHOPPERS, EVENTS)
    verified = {found["bundle"]: found["vectors"] for found in bundles.verify(shop.recipe, [])}
    assert {name for name, vectors in verified.items() if vectors is not None} == known
    answers(shop, active)
    return active


EVENTS = sum(3 + number % 4 for number in range(tiny.SHOPPERS))
"""Of the shoppers of a tiny recipe."""


def answers(shop: Shop, name: str) -> None:
    """Searches by the index of a bundle find what a comparison with every product finds."""
    made = bundle.read(shop.store, name)
    opened = Connections(postgres.url(shop.store), size=1)
    try:
        index = VectorIndex(opened, name, made.config.index)
        for vector in made.item_vectors()[:5]:
            found, truth = (
                search(vector, 10, exclude=np.empty(0, np.int64), filters=Filters())
                for search in (index.search, index.exact)
            )
            assert (found.path, truth.path) == ("hnsw", "exact")
            assert found.rows.tolist() == truth.rows.tolist()
    finally:
        opened.close()
