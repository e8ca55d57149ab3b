"""The Dockerfile by a linter, and the properties of the image that a reviewer would look for; it is not built here."""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from rec import __version__
from tests.cluster.manifests import CLUSTER, REPOSITORY, tool

COMPILERS = re.compile(r"\b(build-essential|gcc|g\+\+|clang|make|cmake|python3-dev|apt-get|apk)\b")


@dataclass(frozen=True)
class Stage:
    """A stage of a Dockerfile: what it starts from, its name, its instructions."""

    base: str
    name: str
    instructions: list[tuple[str, str]]

    def all(self, keyword: str) -> list[str]:
        """Arguments of an instruction, in order."""
        return [argument for each, argument in self.instructions if each == keyword]


def parse(path: Path) -> tuple[dict[str, str], list[Stage]]:
    """Arguments before the first stage, and the stages."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in text.replace("\\\n", " ").splitlines():
        keyword, _, argument = line.strip().partition(" ")
        if not keyword:
            continue
        assert keyword.isupper(), line
        if keyword == "FROM":
            base, _, name = argument.partition(" AS ")
            stages.append(Stage(base, name, []))
        elif stages:
            stages[-1].instructions.append((keyword, argument.strip()))
        else:
            name, _, value = argument.partition("=")
            arguments[name] = value
    return arguments, stages


@pytest.fixture(scope="module")
def image() -> tuple[dict[str, str], list[Stage]]:
    """The project's Dockerfile."""
    return parse(CLUSTER / "Dockerfile")


def test_a_linter_finds_nothing_in_any_dockerfile() -> None:
    """What is to be ignored says so above its instruction, with the reason."""
    files = sorted(CLUSTER.rglob("*Dockerfile"))
    assert CLUSTER / "Dockerfile" in files
    done = subprocess.run([tool("hadolint"), "--no-color", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_base_is_one_exact_version_of_the_python_that_constraints_are_for(
    image: tuple[dict[str, str], list[Stage]],
) -> None:
    arguments, stages = image
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", arguments["BASE"])
    assert len(stages) == 2
    assert {stage.base for stage in stages} == {"${BASE}"}
    assert "Python 3.11" in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()[0]


def test_every_package_is_pinned_by_the_constraints(image: tuple[dict[str, str], list[Stage]]) -> None:
    installs = [
        part for stage in image[1] for run in stage.all("RUN") for part in run.split("&&") if "pip install" in part
    ]
    assert len(installs) == 2
    assert all(" -c constraints.txt " in install for install in installs)
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    (torch,) = [word for install in installs for word in install.split() if word.startswith("torch==")]
    assert f"\n{torch}\n" in constraints


def test_the_last_stage_is_run_by_a_user_without_compiler_or_package_manager(
    image: tuple[dict[str, str], list[Stage]],
) -> None:
    last = image[1][-1]
    assert last.all("USER") == ["1000:1000"]
    assert last.instructions.index(("USER", "1000:1000")) > max(
        number for number, (keyword, _) in enumerate(last.instructions) if keyword in ("RUN", "COPY")
    )
    for run in last.all("RUN"):
        assert not COMPILERS.search(run), run
        assert "pip" not in run
    assert not last.all("ADD"), "ADD fetches and unpacks"
    assert all("--chown" not in copy for copy in last.all("COPY")), "the code is not writable by who runs it"


def test_code_is_the_working_directory_on_the_path_and_nothing_else_is_in_the_image(
    image: tuple[dict[str, str], list[Stage]],
) -> None:
    last = image[1][-1]
    assert last.all("WORKDIR") == ["/app"]
    environment = dict(word.split("=", 1) for line in last.all("ENV") for word in shlex.split(line))
    assert environment["PYTHONPATH"] == "/app"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["PATH"].startswith("/opt/venv/bin:")
    assert "/etc/profile.d" in " ".join(last.all("RUN")), "KubeRay's login shell would not find Ray"
    own = {copy.split()[0] for copy in last.all("COPY") if not copy.startswith("--from")}
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    assert own <= {line[1:] for line in ignored if line.startswith("!")}
    assert {"rec", "jobs", "serve"} <= own
    assert all((REPOSITORY / name).exists() for name in own)


def test_no_secret_is_built_in(image: tuple[dict[str, str], list[Stage]]) -> None:
    names = {
        name
        for stage in image[1]
        for line in stage.all("ENV") + stage.all("ARG")
        for name in re.findall(r"(\w+)=", line)
    }
    assert not [name for name in names if re.search("KEY|PASSWORD|TOKEN|URL", name)]


def test_shown_tags_are_of_this_version() -> None:
    shown = re.findall(r"shop-rec:([\w.]+)-c", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"))
    assert set(shown) == {__version__}
