"""A stranger's walk through the README, as far as its commands need no download: each is run as it is written there."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rec import ports, postgres
from tests.pipeline.conftest import Finished

pytestmark = pytest.mark.slow

README_PORT = 8000
READY_S = 300


@dataclass(frozen=True, slots=True)
class Stranger:
    """A checkout with an environment, and a shell in it."""

    folder: Path
    readme: str
    port: int
    environment: dict[str, str]

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def ok(self, command: list[str]) -> str:
        """The standard output of a command that must succeed."""
        done = self.run(command)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2_000:]}\n{done.stderr[-3_000:]}"
        return done.stdout

    def written(self, start: str) -> list[list[str]]:
        """The README's commands that begin with `start`, as words, for this shop's port."""
        said = self.readme.replace(f":{README_PORT}/", f":{self.port}/")
        blocks = re.findall(r"^```sh\n(.*?)^```", said, re.MULTILINE | re.DOTALL)
        lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
        found = [shlex.split(line) for line in lines if line.startswith(start)]
        assert found, f"the README has no command {start!r}"
        return found


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def stranger(finished: Finished, repository: Path, environment_of_jobs: dict[str, str]) -> Iterator[Stranger]:
    """A copy of the checkout whose .venv is this environment and whose demo is finished but not published."""
    folder = Path(tempfile.mkdtemp(prefix="rec-walk-"))  # the embedded Postgres may not enter pytest's own folders
    for name in ("rec", "jobs", "serve"):
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(repository / name, folder)
    shutil.copy(finished.recipe, folder / "rec" / "recipes" / "demo.toml")
    shutil.copytree(finished.config.root, folder / ".rec" / "demo")
    (folder / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / part).symlink_to(Path(sys.prefix) / part)
    (folder / ".venv" / "complete").touch()
    environment = {**environment_of_jobs, "PYTHONPATH": str(folder), "RAY_ADDRESS": "local"}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # a make that this one would take for its parent
        environment.pop(name, None)
    readme = (repository / "README.md").read_text(encoding="utf-8")
    yield Stranger(folder, readme, ports.free(), environment)
    subprocess.run(["make", "stop"], cwd=folder, env=environment, capture_output=True, check=False)
    postgres.stop_embedded(folder / ".rec")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shop(stranger: Stranger) -> Stranger:
    """After `make demo`."""
    assert stranger.ok(["make", "demo", f"PORT={stranger.port}"]).splitlines()[-1] == (
        f"The shop is at http://127.0.0.1:{stranger.port}/ ; make stop ends it."
    )
    return stranger


def test_requests_of_the_readme_are_answered_as_it_shows(shop: Stranger) -> None:
    answers = [json.loads(shop.ok(words)) for words in shop.written("curl")]
    blocks = re.findall(r"^```json\n(.*?)^```", shop.readme, re.MULTILINE | re.DOTALL)
    (shown,) = [block for block in map(json.loads, blocks) if "items" in block]
    (answer,) = [each for each in answers if "items" in each]
    assert answer.keys() == shown.keys()
    assert answer["milliseconds"].keys() == shown["milliseconds"].keys()
    assert answer["items"][0].keys() == shown["items"][0].keys()
    assert any("items" not in each for each in answers), "one of them asks whether the server is ready"


def test_one_shop_at_a_time_and_the_second_is_told_before_any_work(shop: Stranger) -> None:
    again = shop.run(["make", "demo", f"PORT={shop.port}"])
    assert again.returncode == 2
    assert "already runs" in again.stderr
    assert "stage" not in again.stderr


def test_stop_ends_the_shop(shop: Stranger) -> None:
    shop.ok(["make", "stop"])
    assert not _taken(shop.port)
    shop.ok(["make", "stop"])


@pytest.mark.long
def test_serve_run_answers_without_make(shop: Stranger) -> None:
    shop.ok(["make", "stop"])
    if _taken(README_PORT):
        pytest.skip(f"port {README_PORT}, which `serve run` takes, is in use")
    (command,) = shop.written("serve run serve.app:graph")
    with (shop.folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=shop.folder, env=shop.environment, stdout=log, stderr=log, preexec_fn=_at_a_terminal
        )
    try:
        assert _ready(server), (shop.folder / "serve.log").read_text()[-3_000:]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    assert not _taken(README_PORT)


def _at_a_terminal() -> None:
    """Where the suite runs in the background, Ctrl-C is ignored, and what it starts inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ready(server: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{README_PORT}/readyz", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    return False
