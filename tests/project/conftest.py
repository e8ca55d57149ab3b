"""Help of every job, and what its parser makes of a command, in one process each: importing torch and Ray a dozen times
would take a minute."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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

PARSE = """
import contextlib, io, json, runpy, sys
from rec import cli

def parsed(run, arguments, *, writes=False):
    found.append(vars(arguments.parse_args()))
    return {"fail": 0}

cli.main = parsed
made = []
for words in json.load(sys.stdin):
    sys.argv, found, said = words, [], io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit:
            pass
    made.append([found[0] if found else None, said.getvalue()])
print(json.dumps(made, default=str))
"""


@pytest.fixture(scope="session")
def parse(repository: Path) -> Callable[[Sequence[Sequence[str]]], list[tuple[dict[str, Any] | None, str]]]:
    """What each job's own parser makes of its file and arguments: options, or None and what it has against them."""

    def parse(lines: Sequence[Sequence[str]]) -> list[tuple[dict[str, Any] | None, str]]:
        command = [sys.executable, "-c", PARSE]
        done = subprocess.run(
            command, input=json.dumps(lines), cwd=repository, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return [(options, said) for options, said in json.loads(done.stdout.splitlines()[-1])]

    return parse


@pytest.fixture(scope="session")
def helps(repository: Path) -> Mapping[str, tuple[object, str]]:
    """Job file, relative to the repository → exit code and text of `--help`."""
    jobs = sorted(path.relative_to(repository).as_posix() for path in (repository / "jobs").glob("*.py"))
    command = [sys.executable, "-c", PRINT_HELP, *jobs]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {job: (code, text) for job, (code, text) in json.loads(done.stdout.splitlines()[-1]).items()}
