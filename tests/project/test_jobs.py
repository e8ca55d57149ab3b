"""Every job file can be started as it is, and says what it does."""

import os
import runpy
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rec import artifact

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = sorted((REPOSITORY / "jobs").glob("*.py"))
STAGES = [
    "ingest", "enrich", "tensorize", "encode", "pretrain", "embed",
    "train_user", "candidates", "exposures", "train_ranker", "train_fit", "evaluate", "publish",
]  # fmt: skip


def test_there_is_a_job_for_every_stage() -> None:
    others = {"pipeline", "benchmark", "bundles", "database", "doctor", "experiment", "rules", "shop"}
    assert {*STAGES, *others} <= {path.stem for path in JOBS}


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_job_is_executable_and_has_a_shebang(job: Path) -> None:
    assert job.read_text(encoding="utf-8").startswith("#!/usr/bin/env python\n")
    assert os.access(job, os.X_OK), f"chmod 755 {job.name}"


@pytest.mark.slow
@pytest.mark.parametrize("job", [*STAGES, "pipeline"])
def test_no_job_begins_while_another_one_writes_the_same_artifacts(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [job, "--set", f"store={tmp_path}"])
    with artifact.alone(tmp_path / "demo"), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "jobs" / f"{job}.py"), run_name="__main__")
    assert ended.value.code == 2
    said = (
        f"error: process {os.getpid()} on {socket.gethostname()} is writing to {tmp_path / 'demo'}: wait until it ends"
    )
    assert said in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [artifact.LOCK]


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_job_prints_its_help(job: Path, helps: Mapping[str, tuple[object, str]]) -> None:
    code, text = helps[f"jobs/{job.name}"]
    assert code == 0
    assert "usage:" in text
    assert "--recipe" in text


@pytest.mark.slow
def test_the_help_of_pretrain_tells_its_options(helps: Mapping[str, tuple[object, str]]) -> None:
    _, text = helps["jobs/pretrain.py"]
    assert "  item_tower.train.epochs=20\n      Passes over the training rows." in text
    assert "  item_tower.behaviour.epochs=0\n" in text
    assert "  item_tower.chunk_size (not set)\n" in text
