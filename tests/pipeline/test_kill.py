"""`jobs/pipeline.py` killed with SIGKILL in several stages and started again gives what an undisturbed run gives."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from rec import artifact, postgres

LIVE_CALLS = 4
WAIT_S = 600
"""Longest wait for one moment, on a loaded machine."""

Moment = Callable[[Path, str], bool]
"""Whether to kill now, given the store and what the pipeline has printed so far."""


def _said(pattern: str) -> Moment:
    return lambda _store, printed: re.search(pattern, printed) is not None


def _has_an_answer(store: Path, printed: str) -> bool:
    return "enrich: start" in printed and (store / "postgres" / "postmaster.pid").exists() and len(_calls(store)) > 0


def _calls(store: Path) -> list[str]:
    """Key of every live call that the ledger holds."""
    with psycopg.connect(postgres.url(store)) as connection:
        try:
            return [row[0] for row in connection.execute("SELECT key FROM llm_calls")]
        except psycopg.errors.UndefinedTable:
            return []


MOMENTS: list[Moment] = [
    _has_an_answer,
    _said(r"pretrain: start[\s\S]*epoch 1/"),
    _said("train_ranker: start"),
    _said("publish: start"),
]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The job on one store."""

    repository: Path
    recipe: Path
    store: Path
    options: list[str]

    def start(self, printed: Path) -> subprocess.Popen[bytes]:
        """Start it as a user does; stdout is the result line, stderr goes to the file `printed`."""
        flags = [word for option in [f"store={self.store}", *self.options] for word in ("--set", option)]
        command = [sys.executable, str(self.repository / "jobs" / "pipeline.py"), "--recipe", str(self.recipe), *flags]
        with printed.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.repository)

    def run(self, printed: Path) -> str:
        """Run it to its end; returns the bundle's id."""
        assert self.start(printed).wait() == 0, printed.read_text()[-4_000:]
        bundle: str = json.loads(printed.read_text().splitlines()[-1])["bundle"]
        return bundle

    def kill_at(self, moment: Moment, printed: Path) -> None:
        """Start it and kill it at a moment."""
        job = self.start(printed)
        until = time.monotonic() + WAIT_S
        while not moment(self.store, printed.read_text(errors="replace")):
            assert job.poll() is None, f"ended before the moment: {printed.read_text()[-4_000:]}"
            assert time.monotonic() < until, f"the moment did not come: {printed.read_text()[-4_000:]}"
            with suppress(subprocess.TimeoutExpired):
                job.wait(0.1)
        job.kill()
        job.wait()

    def hashes(self) -> dict[str, str]:
        """Content hash of every artifact by name."""
        found = {path.name: artifact.peek(path) for path in sorted((self.store / "demo").iterdir())}
        return {name: manifest.content_hash for name, manifest in found.items() if manifest is not None}


@pytest.mark.slow
def test_killed_and_restarted_pipeline_equals_an_undisturbed_one(
    tmp_path: Path, repository: Path, recipe: Path, new_store: Callable[[], Path]
) -> None:
    options = ["enrich.answers=[]", f"enrich.max_calls={LIVE_CALLS}"]
    calm = Pipeline(repository, recipe, new_store(), options)
    killed = Pipeline(repository, recipe, new_store(), options)
    for number, moment in enumerate(MOMENTS):
        killed.kill_at(moment, tmp_path / f"killed{number}.log")
    bundle = killed.run(tmp_path / "killed.log")
    assert bundle == calm.run(tmp_path / "calm.log")
    assert killed.hashes() == calm.hashes()
    assert len(killed.hashes()) >= 13
    assert sorted(_calls(killed.store)) == sorted(_calls(calm.store))
    assert len(set(_calls(killed.store))) == LIVE_CALLS
