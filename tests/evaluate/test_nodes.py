"""The drill on nodes: what it reads of a running job. The drill itself takes minutes: `jobs/benchmark.py nodes`."""

import time
from pathlib import Path

import pytest

from rec.errors import RecError
from rec.evaluate.local_nodes import Job

PIPELINE = """\
import json, sys, time
for number, stage in enumerate(("enrich", "pretrain"), 1):
    print(f"INFO rec.pipeline: stage {number}/2 {stage}: start", file=sys.stderr, flush=True)
    while not (open(sys.argv[-1].partition("=")[2] + "/" + stage).read()): time.sleep(0.01)
print(json.dumps({"seconds": {"enrich": 1.5}, "told": sys.argv[1:]}))
sys.exit(open(sys.argv[-1].partition("=")[2] + "/pretrain").read() == "fail")
"""


@pytest.mark.parametrize("end", ["go", "fail"])
def test_a_job_is_followed_by_its_stages_to_its_end(tmp_path: Path, end: str) -> None:
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    store = tmp_path / "store"
    store.mkdir()
    for stage in ("enrich", "pretrain"):
        (store / stage).touch()
    with Job(tmp_path, "demo", ["seed=3"]).started("pipeline.py", store) as running:
        for stage, word in (("enrich", "go"), ("pretrain", end)):
            until = time.monotonic() + 20
            while running.stage != stage and time.monotonic() < until:
                time.sleep(0.01)
            assert running.stage == stage
            (store / stage).write_text(word)
        if end == "fail":
            with pytest.raises(RecError, match=r"pipeline[.]py ended with code 1: .*stage 2/2 pretrain"):
                running.result()
            return
        said = running.result()
    assert said["seconds"] == {"enrich": 1.5}
    assert said["told"] == ["--recipe", "demo", "--set", "seed=3", "--set", f"store={store}"]


def test_a_job_is_ended_with_its_block(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("import time; time.sleep(60)")
    with Job(tmp_path, "demo", []).started("pipeline.py", tmp_path) as running:
        assert running.process.poll() is None
    assert running.process.poll() is not None
