"""Ask PyPI's advisories about every version of constraints.txt.

Ends with code 1 for what they name. Where they cannot be asked it says NOT AUDITED and ends with 0: a machine without
network still builds.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COMMAND = "pip-audit --strict --requirement constraints.txt --no-deps --disable-pip"
"""As SECURITY.md shows it."""
LIMIT_S = 120


def main() -> int:
    """The exit code."""
    pins = [line for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
    program, *options = COMMAND.split()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "audit.json"
        options += ["--progress-spinner", "off", "--timeout", "15", "--format", "json", "--output", str(report)]
        command = [str(Path(sys.executable).parent / program), *options]
        try:
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return not_audited(f"{program} did not end: {type(error).__name__}")
        if not report.exists():  # it is written where all could be asked, whatever the answers were
            return not_audited(" ".join(done.stderr.split("\n")[-2:]).strip())
        found = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
    asked = [each for each in found if "vulns" in each]
    if len(asked) < len(pins):
        return not_audited(f"{len(pins) - len(asked)} of {len(pins)} packages could not be asked about")
    named = [(each["name"], each["version"], fault["id"]) for each in asked for fault in each["vulns"]]
    for name, version, advisory in named:
        print(f"audit: {name} {version}: {advisory}")
    print(f"audit: {len(asked)} packages of constraints.txt, {len(named)} advisories")
    return 1 if named else 0


def not_audited(why: str) -> int:
    """Says so."""
    print(f"audit: NOT AUDITED, the advisories of PyPI could not be asked: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
