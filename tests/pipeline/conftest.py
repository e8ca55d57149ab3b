"""A checkout of its own for tests that start jobs as a user does, and a recipe small enough for two cores."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rec import postgres


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """Overrides of the demo recipe that keep every stage real and make it short."""
    return [
        "enrich.max_calls=0",
        "item_tower.train.epochs=2",
        "item_tower.train.cpus_per_worker=1",
        "user_tower.train.epochs=2",
        "user_tower.train.cpus_per_worker=1",
        "ranker.train.epochs=2",
        "ranker.train.cpus_per_worker=1",
        "evaluate.bootstrap=100",
    ]


@pytest.fixture(scope="session")
def environment_of_jobs(repository: Path) -> dict[str, str]:
    """Environment of a user in an activated .venv: its `python` and `ray` come first on the PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A copy of what a user cloned, so that the default store lies in it and not in this repository."""
    target = tmp_path / "checkout"
    target.mkdir()
    for folder in ("rec", "jobs"):
        shutil.copytree(repository / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / ".gitignore", target)
    return target


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A folder for artifacts; the embedded Postgres that jobs start in it is stopped at the end."""
    folder = tmp_path / "store"
    yield folder
    postgres.stop_embedded(folder)
