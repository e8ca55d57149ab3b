"""Every job file can be started as it is, and says what it does."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = sorted((REPOSITORY / "jobs").glob("*.py"))
STAGES = [
    "ingest", "enrich", "tensorize", "encode", "pretrain", "embed",
    "train_user", "candidates", "train_ranker", "evaluate", "publish",
]  # fmt: skip


def test_there_is_a_job_for_every_stage() -> None:
    assert {*STAGES, "pipeline", "benchmark", "shop"} <= {path.stem for path in JOBS}


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_job_is_executable_and_has_a_shebang(job: Path) -> None:
    assert job.read_text(encoding="utf-8").startswith("#!/usr/bin/env python\n")
    assert os.access(job, os.X_OK), f"chmod 755 {job.name}"


@pytest.mark.slow
def test_every_job_prints_its_help() -> None:
    def help_of(job: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(job), "--help"], capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        for job, done in zip(JOBS, pool.map(help_of, JOBS), strict=True):
            assert done.returncode == 0, f"{job.name}: {done.stderr}"
            assert "usage:" in done.stdout, job.name
