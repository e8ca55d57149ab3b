"""The sample through the stage and through the job."""

import json
import subprocess
import sys
from pathlib import Path

from rec import dataset
from rec.config import load
from rec.data import ingest, sample
from rec.schema import INTERACTIONS, PRODUCTS, USERS


def test_the_sample_arrives_unchanged(tmp_path: Path) -> None:
    config = load("demo", [f'store="{tmp_path}"'])
    facts = ingest.run(config)
    made = sample.generate(config.seed)
    assert [facts[name]["rejected"] for name in ("products", "users", "events")] == [0, 0, 0]
    products = dataset.read(config.at("products"), PRODUCTS).to_pylist()
    for wanted, row in zip(made.products, products, strict=True):
        assert dict(row["attributes"]) == wanted["attributes"]
        assert {key: round(value, 1) for key, value in row["measurements"]} == wanted["measurements"]
        for name in ("product_id", "title", "description", "html", "brand", "group_id", "created_at", "available"):
            assert row[name] == wanted[name]
    users = dataset.read(config.at("users"), USERS).to_pylist()
    assert [row["user_id"] for row in users] == [row["user_id"] for row in made.users]
    assert [row["height_cm"] is None for row in users] == [row["height_cm"] is None for row in made.users]
    events = dataset.read(config.at("events"), INTERACTIONS).to_pylist()
    for wanted, row in zip(made.events, events, strict=True):
        for name in ("user_id", "product_id", "event", "at", "context"):
            assert row[name] == wanted[name]


def test_another_seed_is_another_input(tmp_path: Path) -> None:
    ingest.run(load("demo", [f'store="{tmp_path}"']))
    assert not ingest.run(load("demo", [f'store="{tmp_path}"', "seed=18"]))["skipped"]


def test_job_prints_counts_and_one_sentence_on_bad_input(tmp_path: Path, repository: Path) -> None:
    def job(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "jobs/ingest.py", "--set", f'store="{tmp_path}"', *options]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)

    done = job()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["products"]["rows"] == 398
    failed = job("--recipe", "hm", "--set", f'source.folder="{tmp_path / "nowhere"}"')
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "nowhere holds neither articles.csv" in failed.stderr
