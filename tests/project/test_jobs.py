"""Every job file can be started as it is, and says what it does."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = sorted((REPOSITORY / "jobs").glob("*.py"))
STAGES = [
    "ingest", "enrich", "tensorize", "encode", "pretrain", "embed",
    "train_user", "candidates", "train_ranker", "train_fit", "evaluate", "publish",
]  # fmt: skip


def test_there_is_a_job_for_every_stage() -> None:
    others = {"pipeline", "benchmark", "bundles", "database", "rules", "shop"}
    assert {*STAGES, *others} <= {path.stem for path in JOBS}


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_job_is_executable_and_has_a_shebang(job: Path) -> None:
    assert job.read_text(encoding="utf-8").startswith("#!/usr/bin/env python\n")
    assert os.access(job, os.X_OK), f"chmod 755 {job.name}"


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_job_prints_its_help(job: Path, helps: Mapping[str, tuple[object, str]]) -> None:
    code, text = helps[f"jobs/{job.name}"]
    assert code == 0
    assert "usage:" in text
    assert "--recipe" in text
