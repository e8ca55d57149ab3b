"""The command line of jobs: one JSON line on success; exit code 2 and one sentence on a user's mistake."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

IN_A_WORKER = """
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayTaskError
from rec import runtime
from rec.cli import main, parser
from rec.errors import InputError

class Worker:
    def __init__(self, fail):
        if fail:
            raise InputError("file 'x.csv' does not exist: check source.products")

    def __call__(self, batch):
        raise InputError("file 'x.csv' does not exist: check source.products")

def run(config, options):
    if options.how == "store":
        raise ObjectStoreFullError("no more")
    if options.how == "disk":
        raise RayTaskError("work", "where it was", OutOfDiskError("no more")).as_instanceof_cause()
    runtime.start(2)
    if options.how == "task":
        ray.get(ray.remote(lambda: Worker(False)({})).remote())
    pool = ray.data.ActorPoolStrategy(size=1)
    ray.data.range(1).map_batches(Worker, compute=pool, fn_constructor_args=(options.how == "actor",)).materialize()

if __name__ == "__main__":
    arguments = parser("A job.")
    arguments.add_argument("how")
    main(run, arguments)
"""

JOB = """
from rec.cli import main, parser
from rec.errors import InputError

def run(config, options):
    if options.fail:
        raise InputError("file 'x.csv' does not exist: check source.products")
    if options.bug:
        raise KeyError("bug")
    return {"name": config.name, "seed": config.seed, "path": config.root}

if __name__ == "__main__":
    arguments = parser("A job.")
    arguments.add_argument("--fail", action="store_true")
    arguments.add_argument("--bug", action="store_true")
    main(run, arguments)
"""


def _job(folder: Path, *options: str, code: str = JOB) -> subprocess.CompletedProcess[str]:
    script = folder / "job.py"
    script.write_text(code)
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


FOUND = "error: file 'x.csv' does not exist: check source.products"


@pytest.mark.slow
def test_a_users_mistake_found_in_a_worker_ends_the_same_way(tmp_path: Path) -> None:
    done = _job(tmp_path, "data", code=IN_A_WORKER)
    assert done.returncode == 2
    # not always the last line: Ray forwards what its workers print, such as of a cancelled task, when it comes
    assert FOUND in done.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("how", ["task", "data", "actor"])
def test_wherever_it_is_found_on_a_ray_that_runs(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "job.py"
    script.write_text(IN_A_WORKER)
    monkeypatch.setattr(sys, "argv", [str(script), how])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 2
    assert FOUND in capfd.readouterr().err.splitlines()


FULL = "error: Ray's object store is full and its disk takes no more of it "


@pytest.mark.parametrize(("how", "kind"), [("store", "ObjectStoreFullError"), ("disk", "OutOfDiskError")])
def test_a_full_object_store_is_one_sentence(tmp_path: Path, how: str, kind: str) -> None:
    """Also where a worker found it."""
    done = _job(tmp_path, how, code=IN_A_WORKER)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{FULL}({kind}): free space on the disk")
    assert done.stderr.count("\n") == 1


def test_a_bug_is_a_traceback(tmp_path: Path) -> None:
    done = _job(tmp_path, "--bug")
    assert done.returncode == 1
    assert "KeyError: 'bug'" in done.stderr
