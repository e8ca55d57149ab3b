"""The wheel holds the library and its data, and nothing else of the repository."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel built from a copy, so that no build output lands in the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    skip = shutil.ignore_patterns(".git", ".venv", ".rec", "__pycache__", ".*_cache", "build", "*.egg-info")
    shutil.copytree(REPOSITORY, copy, ignore=skip, dirs_exist_ok=True)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=copy, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built).namelist()


@pytest.mark.slow
def test_wheel_contains_only_rec(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rec"}


@pytest.mark.slow
def test_wheel_contains_every_file_of_rec(wheel: list[str]) -> None:
    wanted = {".py", ".toml", ".jsonl", ".html"}
    files = {p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / "rec").rglob("*") if p.suffix in wanted}
    assert files <= set(wheel), sorted(files - set(wheel))
