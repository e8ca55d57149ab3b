"""The whole chain once on a quick recipe, and a checkout for tests that start jobs as a user does."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rec import config, pipeline
from rec.config import Config

QUICK = """
name = "demo"

[source]
kind = "sample"

[enrich]
answers = ["sample"]
max_calls = 2
max_output_tokens = 48  # what is said is not at stake
threads = 1  # several wait for each other busily, and other tests run meanwhile

[text]
cpus_per_actor = 1

[item_tower.train]
epochs = 2
cpus_per_worker = 1

[user_tower.train]
epochs = 2
cpus_per_worker = 1

[ranker.train]
epochs = 2
cpus_per_worker = 1

[evaluate]
bootstrap = 200
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """A pipeline that ran to its end."""

    recipe: Path
    config: Config
    result: dict[str, Any]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo recipe with every stage real and short."""
    path = tmp_path_factory.mktemp("recipe") / "demo.toml"
    path.write_text(QUICK)
    return path


@pytest.fixture(scope="session")
def finished(recipe: Path, new_store: Callable[[], Path], ray_local: None) -> Finished:
    """All stages of the quick recipe, run once for the session."""
    given = config.load(str(recipe), [f"store={new_store()}"])
    return Finished(recipe, given, pipeline.run(given))


@pytest.fixture(scope="session")
def environment_of_jobs() -> dict[str, str]:
    """Environment of a user in an activated .venv: its `python` and `ray` come first on the PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def checkout(tmp_path: Path, repository: Path, recipe: Path) -> Path:
    """A copy of what a user cloned, with the quick recipe for `demo`, whose default store lies within it."""
    target = tmp_path / "checkout"
    target.mkdir()
    for folder in ("rec", "jobs"):
        shutil.copytree(repository / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / ".gitignore", target)
    shutil.copy(recipe, target / "rec" / "recipes" / "demo.toml")
    return target
