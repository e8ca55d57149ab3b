"""The help of every job, printed in one process: importing torch and Ray a dozen times would take a minute."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PRINT_HELP = """
import contextlib, io, json, runpy, sys

found = {}
for job in sys.argv[1:]:
    sys.argv = [job, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(job, run_name="__main__")
            code = "returned"
        except SystemExit as end:
            code = end.code
    found[job] = [code, out.getvalue()]
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def helps(repository: Path) -> Mapping[str, tuple[object, str]]:
    """Job file, relative to the repository → exit code and text of `--help`."""
    jobs = sorted(path.relative_to(repository).as_posix() for path in (repository / "jobs").glob("*.py"))
    command = [sys.executable, "-c", PRINT_HELP, *jobs]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {job: (code, text) for job, (code, text) in json.loads(done.stdout.splitlines()[-1]).items()}
