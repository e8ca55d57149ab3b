"""`jobs/pipeline.py` killed with SIGKILL in its long stages and started again gives what an undisturbed run gives."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from rec import artifact, partial_array, postgres
from rec.train import ddp
from tests.pipeline.conftest import Finished

WAIT_S = 600
"""Longest wait for one moment, on a loaded machine."""

Moment = Callable[[Path, str], bool]
"""Whether to kill now, given the store and what the pipeline has printed so far."""


def _started(stage: str) -> Moment:
    return lambda _store, printed: f"{stage}: start" in printed


def _has_a_checkpoint(run: str) -> Moment:
    return lambda store, _printed: any((store / "demo" / "runs").glob(f"{run}-*/{ddp.SNAPSHOT}"))


def _has_begun(array: str) -> Moment:
    """An array that fills up block by block."""
    return lambda store, _printed: any((store / "demo" / "runs").glob(f"{array}-*/{partial_array.BEGUN}"))


def _has_an_answer(store: Path, printed: str) -> bool:
    return "enrich: start" in printed and (store / "postgres" / "postmaster.pid").exists() and len(_calls(store)) > 0


def _calls(store: Path) -> list[str]:
    """Key of every live call that the ledger holds."""
    with psycopg.connect(postgres.url(store)) as connection:
        try:
            return [row[0] for row in connection.execute("SELECT key FROM llm_calls")]
        except psycopg.errors.UndefinedTable:
            return []


MOMENTS = {
    "enrich": _has_an_answer,
    "encode": _has_begun("text_states"),
    "pretrain": _has_a_checkpoint("item_tower"),
    "embed": _has_begun("vectors"),
    "train_user": _has_a_checkpoint("user_tower"),
    "train_ranker": _has_a_checkpoint("ranker"),
    "publish": _started("publish"),
}
"""What has happened when the pipeline is killed in a stage; each start goes on from where the one before was killed."""


UNTOUCHED = ("vocabulary", "tensors", "sources", "samples", "evaluation")
"""Artifacts of stages in which nothing is killed: each is made anew unless all before it is the same again."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The job on one store."""

    repository: Path
    recipe: Path
    store: Path

    def start(self, printed: Path) -> subprocess.Popen[bytes]:
        """Start it as a user does; stdout is the result line, stderr goes to the file `printed`."""
        job = str(self.repository / "jobs" / "pipeline.py")
        command = [sys.executable, job, "--recipe", str(self.recipe), "--set", f"store={self.store}"]
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


def _hashes(root: Path) -> dict[str, str]:
    """Content hash of every artifact by name."""
    found = {path.name: artifact.peek(path) for path in root.iterdir()}
    return {name: manifest.content_hash for name, manifest in found.items() if manifest is not None}


@pytest.mark.long
def test_killed_and_restarted_pipeline_equals_an_undisturbed_one(
    finished: Finished, tmp_path: Path, repository: Path, new_store: Callable[[], Path]
) -> None:
    killed = Pipeline(repository, finished.recipe, new_store())
    for name in UNTOUCHED:
        shutil.copytree(finished.config.at(name), killed.store / "demo" / name)
    for stage, moment in MOMENTS.items():
        killed.kill_at(moment, tmp_path / f"{stage}.log")
    assert killed.run(tmp_path / "killed.log") == finished.result["bundle"]
    for follower in ("embed", "train_ranker", "publish"):
        assert "going on after epoch" in (tmp_path / f"{follower}.log").read_text(), "the training started over"
    assert _hashes(killed.store / "demo") == _hashes(finished.config.root)
    calls = _calls(killed.store)
    assert len(calls) == len(set(calls)) > 0, "an answer was paid for twice"
    assert sorted(calls) == sorted(_calls(Path(finished.config.store)))
