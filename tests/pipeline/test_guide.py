"""The lines of operations guide and security page that need no cluster, as they stand there, one after the other."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from rec import bundle, postgres, publish
from rec.index import promote
from tests.bundle import tiny
from tests.project.test_readme import AWAY, GUIDE, SECURITY, commands_of

REPOSITORY = Path(__file__).resolve().parents[2]
HOURS, MINUTES = "# takes hours", "# takes minutes"
"""Marks of commands that tests of their own run on less: tests/evaluate/test_scale.py and test_nodes.py."""

pytestmark = pytest.mark.long


class Operator:
    """Types the lines, for a store with two bundles of its own."""

    def __init__(self, new_store: Callable[[], Path], folder: Path) -> None:
        self.store, self._folder = new_store(), folder
        self.restored = new_store()  # its database is filled from the backup
        self.bundles = [publish.run(tiny.make(tiny.config(self.store, seed=seed)))["bundle"] for seed in (23, 17)]

    def said(self, line: str) -> str:
        """What the command prints; it has to end well."""
        kinds = {"s3://shop/bundles": (self._folder / "bundles").as_uri(), "8ec63620b4d2": self.bundles[1]}
        kinds |= {"1f0c2a9e77b3": self.bundles[0], "u0042": "u03"}
        kinds |= {name: str(self._folder / name) for name in ("shop.dump", "answers.jsonl")}
        store = self.restored if " restore " in line else self.store
        words = [kinds.get(word, word) for word in shlex.split(line, comments=True)]
        words = [sys.executable if word == "python" else word for word in words]
        command = [*words, "--set", f"store={store}", "--set", "name=tiny"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def active(self, store: Path | None = None) -> str:
        """The active bundle."""
        with psycopg.connect(postgres.url(store or self.store)) as connection:
            return promote.active(connection)

    def events(self, user: str) -> int:
        """How many events of a user the database has."""
        with psycopg.connect(postgres.url(self.store)) as connection:
            row = connection.execute("SELECT count(*) FROM events WHERE user_id = %s", [user]).fetchone()
        assert row is not None
        return int(row[0])


def here() -> Iterator[str]:
    for line in commands_of(GUIDE) + commands_of(SECURITY):
        if line.startswith("python jobs/") and AWAY not in line and HOURS not in line and MINUTES not in line:
            yield line


def test_what_the_guide_says_can_be_typed(new_store: Callable[[], Path], tmp_path: Path) -> None:
    operator = Operator(new_store, tmp_path)
    first, second = operator.bundles
    assert operator.events("u03") > 0
    typed = list(here())
    assert len(typed) >= 14
    for line in typed:
        printed = operator.said(line)
        verb = " ".join(shlex.split(line, comments=True)[1:3])
        if verb == "jobs/bundles.py list":
            assert {first, second} <= set(printed.replace('"', " ").split())
        elif verb == "jobs/bundles.py promote":
            assert operator.active() == second
        elif verb == "jobs/bundles.py rollback":
            assert operator.active() == first
        elif verb == "jobs/database.py restore":
            assert operator.active(operator.restored) == first
        elif verb == "jobs/bundles.py push":
            assert (tmp_path / "bundles").is_dir()
        elif verb == "jobs/database.py backup":
            assert (tmp_path / "shop.dump").stat().st_size > 0
    assert (tmp_path / "answers.jsonl").is_file()
    assert set(bundle.names(str(operator.store))) == {first, second}
    assert operator.events("u03") == 0
