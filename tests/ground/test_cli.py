"""The command line of jobs: one JSON line on success; exit code 2 and one sentence on a user's mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

JOB = """
from rec.cli import main, parser
from rec.errors import InputError

def run(config, options):
    if options.fail:
        raise InputError("file 'x.csv' does not exist: check source.products")
    return {"name": config.name, "seed": config.seed, "path": config.root}

if __name__ == "__main__":
    arguments = parser("A job.")
    arguments.add_argument("--fail", action="store_true")
    main(run, arguments)
"""


def _job(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = folder / "job.py"
    script.write_text(JOB)
    return subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, cwd=folder, check=False
    )


def test_result_is_one_json_line_on_stdout(tmp_path: Path) -> None:
    done = _job(tmp_path, "--recipe", "demo", "--set", "seed=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout) == {"name": "demo", "seed": 5, "path": str(tmp_path / ".rec" / "demo")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fail"], "error: file 'x.csv' does not exist: check source.products"),
        (["--recipe", "dmeo"], "did you mean 'demo'?"),
        (["--set", "item_tower.widht=1"], "did you mean 'item_tower.width'?"),
        (["--set", "seed"], "must read key.sub=value"),
        (["--recipe", "nowhere.toml"], "recipe file 'nowhere.toml' does not exist"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path, options: list[str], message: str) -> None:
    done = _job(tmp_path, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["job.py"]


def test_unknown_flag_is_exit_code_2_too(tmp_path: Path) -> None:
    done = _job(tmp_path, "--recipee", "demo", "--nope")
    assert done.returncode == 2
    assert "--nope" in done.stderr
