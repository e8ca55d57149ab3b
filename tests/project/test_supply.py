"""What SECURITY.md says of dependencies: the audit never passes for one that was not made, the bill names every pin."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.manifests import REPOSITORY

SCRIPT = REPOSITORY / ".ci" / "audit.py"
PINS = ("numpy==2.0.0", "ray==2.60.0")


def shown() -> list[str]:
    """Commands of SECURITY.md's section on dependencies."""
    text = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8").split("## Dependencies")[1]
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def _audited(folder: Path, pip_audit: str) -> subprocess.CompletedProcess[str]:
    """CI's audit of two packages, with a shell script for pip-audit; `$report` is where its answer belongs."""
    (folder / ".ci").mkdir()
    shutil.copy(SCRIPT, folder / ".ci")
    (folder / "constraints.txt").write_text("# two\n" + "\n".join(PINS) + "\n")
    python, program = folder / "bin" / "python", folder / "bin" / "pip-audit"
    program.parent.mkdir()
    python.symlink_to(sys.executable)
    program.write_text(f'#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\nreport="$1"\n{pip_audit}\n')
    program.chmod(0o755)
    return subprocess.run([python, folder / ".ci" / "audit.py"], capture_output=True, text=True, check=False)


def _answer(*vulns: list[dict[str, str]] | None) -> str:
    named = [dict(zip(("name", "version"), pin.split("=="), strict=True)) for pin in PINS]
    found = [
        {**each, "vulns": faults} if faults is not None else {**each, "skip_reason": "not found"}
        for each, faults in zip(named, vulns, strict=True)
    ]
    return f"cat > \"$report\" <<'END'\n{json.dumps({'dependencies': found})}\nEND\n"


@pytest.mark.parametrize(
    ("pip_audit", "code", "said"),
    [
        (_answer([], []), 0, "audit: 2 packages of constraints.txt, 0 advisories"),
        (_answer([], [{"id": "PYSEC-1"}]) + "exit 1", 1, "audit: ray 2.60.0: PYSEC-1"),
        ("echo ERROR: no network >&2; exit 1", 0, "NOT AUDITED, the advisories of PyPI could not be asked: ERROR"),
        (_answer([], None), 0, "NOT AUDITED, the advisories of PyPI could not be asked: 1 of 2 packages"),
    ],
    ids=["clean", "named", "no network", "skipped"],
)  # fmt: skip
def test_an_audit_fails_for_what_is_named_and_says_where_there_was_none(
    tmp_path: Path, pip_audit: str, code: int, said: str
) -> None:
    done = _audited(tmp_path, pip_audit)
    assert done.returncode == code, done.stderr
    assert said in done.stdout
    assert ("NOT AUDITED" in done.stdout) == ("NOT AUDITED" in said)


def test_the_audit_is_the_one_that_is_shown_and_ci_runs_it() -> None:
    (command,) = [line for line in shown() if line.startswith("pip-audit")]
    assert f'COMMAND = "{command}"' in SCRIPT.read_text(encoding="utf-8")
    assert "--strict" in command, "it would end well where it asked about nothing"
    assert "\nmake audit " in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_the_bill_of_materials_names_every_pin(tmp_path: Path) -> None:
    (line,) = [line for line in shown() if "cyclonedx-py requirements" in line]
    program, *options = shlex.split(line)
    assert (REPOSITORY / program).is_file(), "make bill"
    options[options.index("--output-file") + 1] = str(tmp_path / "sbom.json")
    subprocess.run([REPOSITORY / program, *options], cwd=REPOSITORY, check=True, capture_output=True)
    bill = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    listed = {(each["name"], each["version"]) for each in bill["components"]}
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {tuple(line.split("==")) for line in lines if not line.startswith("#")}
    assert len(pins) > 150
    assert listed == pins
